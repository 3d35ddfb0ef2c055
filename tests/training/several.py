"""Several runs of one start: `torchrun -m tests.training.several FILE`, a JSON list of what the command is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from training import distributed
from training.commands.train import main

if __name__ == "__main__":
    leave = distributed.leave
    distributed.leave = lambda: None  # the processes stay together from run to run
    statuses = [main(arguments) for arguments in json.loads(Path(sys.argv[1]).read_text())]
    leave()
    sys.exit(max(statuses))
