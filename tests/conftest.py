"""For tests that run in several processes (pytest-xdist): which come first, and what is made only once."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

LONGEST = "tests/training/test_learns.py"  # begun last, it would be waited for alone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed goes to another process as UTF-8, and a file's name that is none would end this one."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def threads_are_given_back() -> Iterator[None]:
    """Engines give torch more threads, for the rest of their process; later tests keep to those of the environment.

    OMP_THREAD_LIMIT would not do: oneDNN then waits for threads that never come.
    """
    yield
    wanted, torch = os.environ.get("OMP_NUM_THREADS"), sys.modules.get("torch")
    if wanted and torch and torch.get_num_threads() != int(wanted):
        torch.set_num_threads(int(wanted))


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """once(name, fill): an empty folder that `fill` has filled, the same in every process; not to be changed."""

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            folder = tmp_path_factory.mktemp(name)
            fill(folder)
            return folder
        all_of_them = tmp_path_factory.getbasetemp().parent
        with (all_of_them / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (all_of_them / name).exists():
                folder = tmp_path_factory.mktemp(name)  # where filling fails, the next process tries again
                fill(folder)
                folder.rename(all_of_them / name)
        return all_of_them / name

    return make
