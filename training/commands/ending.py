"""How commands end: in one line where users can mend what is wrong."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from model.errors import CaptionModelError
from training.data import DataError
from training.optimisation import TrainingDiverged

P = ParamSpec("P")


def mendable(*more: type[Exception]) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """A `main` with exit status 1 and one line for errors of models, of data, and for `more`."""

    mended: tuple[type[Exception], ...] = (CaptionModelError, DataError, *more)

    def of(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def ending(*arguments: P.args, **options: P.kwargs) -> int:
            try:
                return main(*arguments, **options)
            except mended as error:
                print(f"error: {error}", file=sys.stderr)
                return 1

        return ending

    return of


def resumable(main: Callable[P, int]) -> Callable[P, int]:
    """A `main` that trains: `mendable`, and with exit status 130 where it is interrupted."""

    @functools.wraps(main)
    def ending(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return mendable(TrainingDiverged)(main)(*arguments, **options)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last save", file=sys.stderr)
            return 130

    return ending
