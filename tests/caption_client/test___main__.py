from __future__ import annotations

import subprocess
import sys

import pytest

INTERRUPT_AT = """
import sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            raise KeyboardInterrupt

wanted = sys.argv.pop()
sys.meta_path.insert(0, Interrupt())
from caption_client.__main__ import run
run()
"""


@pytest.mark.parametrize("module", ["caption_client.cli", "httpx"])
def test_an_interruption_while_modules_load_is_no_traceback(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPT_AT, module], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
