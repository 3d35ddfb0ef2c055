"""A tiny caption set of drawn shapes, such as "a red circle above a blue square", in Flickr's layout."""

from __future__ import annotations

import random
import re
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 205, 40)}
SHAPES = ("circle", "square", "triangle")

# The same captions in other languages: nouns, colours (by the noun's gender where it decides) and the whole.
_NOUNS = {
    "de": {"circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck"},
    "zh": {"circle": "圆形", "square": "方形", "triangle": "三角形"},
    "ar": {"circle": "دائِرة", "square": "مُرَبَّع", "triangle": "مُثَلَّث"},
    "hi": {"circle": "वृत्त", "square": "वर्ग", "triangle": "त्रिभुज"},
}
_COLOURS = {
    "de": {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb"},
    "zh": {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色"},
    "ar": {"red": "أحمر حمراء", "green": "أخضر خضراء", "blue": "أزرق زرقاء", "yellow": "أصفر صفراء"},
    "hi": {"red": "लाल लाल", "green": "हरा हरे", "blue": "नीला नीले", "yellow": "पीला पीले"},
}


def in_language(caption: str, language: str) -> str:
    """One of the English captions of the shapes, in German, Chinese, Arabic with some vowel signs, or Hindi."""
    found = re.fullmatch(r"a (\w+) (\w+) (above|left of) a (\w+) (\w+)", caption)
    assert found
    *_, relation, _, _ = found.groups()
    colours = [_COLOURS[language][found[i]] for i in (1, 4)]
    nouns = [_NOUNS[language][found[i]] for i in (2, 5)]
    if language == "de":
        where = "über" if relation == "above" else "links von"
        ending = "er" if found[2] == "circle" else "es"
        return f"Ein {colours[0]}{ending} {nouns[0]} {where} einem {colours[1]}en {nouns[1]}."
    if language == "zh":
        return f"{colours[0]}{nouns[0]}在{colours[1]}{nouns[1]}{'上方' if relation == 'above' else '左边'}。"
    if language == "ar":
        colours = [colour.split()[found[i] == "circle"] for colour, i in zip(colours, (2, 5), strict=True)]
        return f"{nouns[0]} {colours[0]} {'فَوْقَ' if relation == 'above' else 'على يسار'} {nouns[1]} {colours[1]}."
    colours = [colour.split()[i] for i, colour in enumerate(colours)]
    return f"एक {colours[0]} {nouns[0]} एक {colours[1]} {nouns[1]} के {'ऊपर' if relation == 'above' else 'बाएँ'}।"


def write_shapes(folder: Path, train: int = 600, val: int = 60, test: int = 60, size: int = 64, seed: int = 0) -> Path:
    """Write pictures, `captions.txt` and the split lists; the same seed gives the same set.

    Every picture holds two different objects, and has one true caption: the upper or the left one comes first.
    """
    draw = random.Random(seed)
    (folder / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for split, count in (("train", train), ("dev", val), ("test", test)):
        names = [f"{split}-{i:04}.png" for i in range(count)]
        for name in names:
            picture, caption = draw_pair(draw, size)
            picture.save(folder / "Images" / name)
            lines.append(f"{name},{caption}")
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return folder


def draw_pair(draw: random.Random, size: int) -> tuple[Image.Image, str]:
    """A picture of two objects on a grey ground, each moved a little, and its caption."""
    first, second = draw.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], 2)
    relation = draw.choice(("above", "left of"))
    picture = Image.new("RGB", (size, size), (draw.randint(110, 150),) * 3)
    canvas = ImageDraw.Draw(picture)
    for place, (colour, shape) in ((0.27, first), (0.73, second)):
        along, across = place + draw.uniform(-0.04, 0.04), 0.5 + draw.uniform(-0.15, 0.15)
        x, y = (across, along) if relation == "above" else (along, across)
        _draw_shape(canvas, shape, COLOURS[colour], x * size, y * size, draw.uniform(0.14, 0.18) * size)
    return picture, f"a {' '.join(first)} {relation} a {' '.join(second)}"


def _draw_shape(
    canvas: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], x: float, y: float, r: float
) -> None:
    if shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), colour)
    elif shape == "square":
        canvas.rectangle((x - r, y - r, x + r, y + r), colour)
    else:
        canvas.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), colour)
