"""One HTML file that shows captions as the page does, with everything in it: no server, no other file.

The page's own modules and style sheet are put in as they are. Pictures are written as they come,
so a file of any number of them is made in constant memory.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html import escape
from pathlib import Path
from typing import TextIO

from PIL import Image

from app.schemas import CaptionOut

STATIC = Path(__file__).parent / "static"
MODULES = ("dom.js", "gates.js", "explain.js", "walkthrough.js")  # each after those it imports
SIDE = 960  # pixels of the longer side of a picture in the file

_START = """
for (const block of document.querySelectorAll("script.explained")) {
  const { name, src, image, caption } = JSON.parse(block.textContent);
  const stage = h("section", { class: "stage", "aria-label": name });
  const walk = h("div", { class: "walk-inline" });
  const details = h("details", { class: "walk-details", toggle: () => {
    if (details.open && !walk.hasChildNodes()) walkthrough(walk, laidOut(caption.text, caption.tokens));
  } }, h("summary", {}, "Walk through the LSTM’s four steps with these numbers"), walk);
  block.replaceWith(stage, details);
  explain(stage, { caption, src, image, name });
}
"""


class ExplanationFile:
    """Writes pictures and their explained captions to `path`; to be closed."""

    def __init__(self, path: Path, title: str = "Captions, explained") -> None:
        self._style = (STATIC / "style.css").read_text()
        self._script = "".join(_inline((STATIC / name).read_text()) for name in MODULES) + _START
        policy = f"default-src 'none'; img-src data:; style-src {_hash(self._style)}; script-src {_hash(self._script)}"
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._file.write(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{self._style}</style>\n</head>\n"
            f'<body class="explained-file">\n<main>\n<h1>{escape(title)}</h1>\n'
        )

    def add(self, name: str, picture: Image.Image, size: tuple[int, int], caption: CaptionOut) -> None:
        """Write one picture (RGB), its own (width, height) and its caption, which must be explained."""
        small = picture.copy()
        small.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        block = json.dumps(
            {
                "name": name,
                "src": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
                "image": {"width": size[0], "height": size[1]},
                "caption": caption.model_dump(exclude_none=True),
            }
        ).replace("<", "\\u003c")  # a name with </script> in it stays a name
        self._file.write(f'<script type="application/json" class="explained">{block}</script>\n')

    def close(self) -> None:
        self._file.write(f'</main>\n<script type="module">{self._script}</script>\n</body>\n</html>\n')
        self._file.close()


def _inline(module: str) -> str:
    """A module's source without its imports and exports: all share one scope."""
    return re.sub(r"^export ", "", re.sub(r"^import .*\n", "", module, flags=re.M), flags=re.M)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
