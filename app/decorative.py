"""Tells pictures that show nothing: blank ones, gradients, rules and lines, noise.

Two plain measures on the mean colours of 30 x 30 cells of the picture, 8 x 8 pixels each where a model's input has
240 x 240. Edges: how much they differ from cell to cell when what each row and each column have in common is taken
away, which is all of a blank picture, of a gradient or of stripes; of a picture four times as long as wide also one
bar, which is all of a rule. Structure: how much of the pixels' spread the means keep; of noise they keep an eighth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELLS = 30  # of a side, about
LEAST_EDGES = 8.0  # grey levels, of 255
LEAST_STRUCTURE = 0.3  # of 1
LONG = 4  # times as long as wide, or as wide as long: what rules are


def is_decorative(pixels: NDArray[np.uint8], width: int, height: int) -> bool:
    """Whether (size, size, 3) RGB, as the encoder gets it, shows nothing. width and height: the file's own."""
    edges, structure = measures(pixels, bar=max(width, height) >= LONG * min(width, height))
    return edges < LEAST_EDGES or structure < LEAST_STRUCTURE


def measures(pixels: NDArray[np.uint8], bar: bool = False) -> tuple[float, float]:
    """Edges, in grey levels, and structure, from 0 to 1, of (size, size, 3) RGB; without those of one `bar`."""
    small = Image.fromarray(pixels).reduce(max(len(pixels) // CELLS, 1))
    cells = np.asarray(small, np.float32).transpose(2, 0, 1).copy()  # (3, rows, columns)
    spread = float(pixels[::4, ::4, 1].std())  # of green, which weighs most
    structure = float(cells[1].std()) / spread if spread else 0.0
    cells -= cells.mean(2, keepdims=True)
    cells -= cells.mean(1, keepdims=True)
    if bar:
        rows, weights, columns = np.linalg.svd(cells)
        cells -= np.einsum("cy,c,cx->cyx", rows[:, :, 0], weights[:, 0], columns[:, 0])
    steps = 4 * cells[:, 1:-1, 1:-1]
    steps -= cells[:, :-2, 1:-1] + cells[:, 2:, 1:-1]
    steps -= cells[:, 1:-1, :-2] + cells[:, 1:-1, 2:]
    ranked = np.sort(np.abs(steps).max(0), axis=None)
    return float(ranked[-1 - len(ranked) // 100]), structure  # a hundredth of the cells may differ more
