"""`python -m caption_client` is the command `caption`."""

import os
import sys

from caption_client.cli import INTERRUPTED, main


def run() -> None:
    """The command; what threads still wait for when it is interrupted is not waited for."""
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
