"""How much memory the service may need, so that a container's limit is not below what its own limits allow.

`python -m app.memory` prints it for the settings in the environment, as Docker and Compose take it.
"""

from __future__ import annotations

import math

from app.settings import Settings
from model.runtime.cpu import cpu_quota

# MiB, measured with the embedded model and rounded up; docs/deployment.md has the table.
BASE = 200  # Python, OpenVINO and the weights
THREAD = 100  # the graphs' copy of each thread of the engine, up to `MOST_THREADS`
MOST_THREADS = 8
SUPERVISOR = 60  # with several workers
TMP = 64  # the container's /tmp, which is memory
COPIES = 2  # of an upload: as it came and as the form's file


def needed_mb(settings: Settings, cpus: int) -> int:
    """MiB for `settings` on `cpus` cores: every worker with everything that it may hold at once."""
    threads = min(settings.threads or cpus, MOST_THREADS)
    worker = (
        BASE
        + threads * THREAD
        + COPIES * settings.upload_memory_mb
        + settings.decode_memory_mb  # one process that decodes pictures may take so much, each other a quarter
        + (settings.decode_workers - 1) * settings.decode_memory_mb // 4
    )
    total = TMP + settings.workers * worker + (SUPERVISOR if settings.workers > 1 else 0)
    return 64 * math.ceil(total / 64)


if __name__ == "__main__":
    print(f"{needed_mb(Settings(), cpu_quota())}m")
