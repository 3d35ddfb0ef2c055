from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks import ROOT

STARTS_ONE = """
import sys, time
from pathlib import Path
from benchmarks.load import Server
print(Server(("-c", "import time; time.sleep(600)"), 1, Path(sys.argv[1])).process.pid, flush=True)
time.sleep(600)
"""


def test_a_server_ends_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    line = [sys.executable, "-c", STARTS_ONE, str(tmp_path / "log")]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        server = psutil.Process(int(benchmark.stdout.readline()))
        try:
            assert server.status() != psutil.STATUS_ZOMBIE
            benchmark.kill()
            benchmark.wait()
            gone, _ = psutil.wait_procs([server], timeout=20)
            assert gone or server.status() == psutil.STATUS_ZOMBIE  # nobody here may be there to reap it
        finally:
            if server.is_running():
                server.kill()
