from __future__ import annotations

import pytest

from model.errors import CheckpointError, ConfigError
from training.commands.ending import mendable, resumable
from training.data import DataError
from training.optimisation import TrainingDiverged


@pytest.mark.parametrize("error", [CheckpointError, ConfigError, DataError, TrainingDiverged])
def test_what_users_can_mend_is_one_line(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    @resumable
    def main() -> int:
        raise error("do this")

    assert main() == 1
    assert capsys.readouterr().err == "error: do this\n"


def test_other_mistakes_are_shown_whole_and_an_end_is_passed_on() -> None:
    @resumable
    def main(status: int) -> int:
        return 6 // status

    assert main(3) == main(status=3) == 2
    with pytest.raises(ZeroDivisionError):
        main(0)


def test_an_interrupted_command_says_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    @resumable
    def main() -> int:
        raise KeyboardInterrupt

    assert main() == 130
    assert "the same command goes on from the last save" in capsys.readouterr().err


def test_what_cannot_be_mended_by_users_of_one_command_can_be_by_anothers(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise OSError("no room")

    assert mendable(OSError)(main)() == 1
    assert capsys.readouterr().err == "error: no room\n"
    with pytest.raises(OSError, match="no room"):
        mendable()(main)()
