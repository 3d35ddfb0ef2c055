"""A page of pictures with their captions, references and scores: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from training.data import Picture
from training.scoring.failures import Failure

THUMBNAIL = 224  # pixels, the longer side

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
  body { margin: 1.5rem auto; max-width: 82rem; padding: 0 1rem; }
  table { border-collapse: collapse; }
  td, th { padding: .15rem 1rem .15rem 0; text-align: left; }
  form { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0 1rem; }
  input, select { font: inherit; }
  #pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); padding: 0; }
  li { border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: .5rem; list-style: none;
       padding: .75rem; }
  li[hidden] { display: none; }
  img { display: block; margin: 0 auto .5rem; max-width: 100%; }
  .caption { font-weight: 600; margin: 0; }
  .facts, .kind { font-size: .85rem; margin: .25rem 0; opacity: .8; }
  .kind b { color: light-dark(#a02020, #ff9a90); }
  ul { margin: .25rem 0 0; padding-left: 1.1rem; }
  ul li { border: 0; list-style: disc; padding: 0; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<table>
{%- for name, value in facts.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{%- endfor %}
</table>
{%- if notes %}
<p>{{ notes }}</p>
{%- endif %}
<form>
  <label>Order <select id="order">
    <option value="">as listed</option>
    <option value="up">CIDEr, lowest first</option>
    <option value="down">CIDEr, highest first</option>
  </select></label>
  <label>Only with the words <input id="words" type="search"></label>
  <output id="count">{{ entries|length }} pictures</output>
</form>
<ol id="pictures">
{%- for entry in entries %}
<li data-cider="{{ entry.cider }}">
  <img src="{{ entry.thumbnail }}" alt="{{ entry.caption }}" loading="lazy">
  <p class="caption">{{ entry.caption }}</p>
  <p class="facts">CIDEr {{ "%.0f"|format(entry.cider) }} · confidence {{ "%.2f"|format(entry.confidence) }}
    · {{ entry.picture.name }}</p>
  {%- for failure in entry.failures %}
  <p class="kind"><b>{{ failure.kind }}</b> ({{ "judged" if failure.judged else "guessed" }}):
    {{ failure.evidence }}</p>
  {%- endfor %}
  <details{{ " open" if entry.failures }}><summary>references</summary><ul>
  {%- for reference in entry.picture.captions %}
    <li>{{ reference }}</li>
  {%- endfor %}
  </ul></details>
</li>
{%- endfor %}
</ol>
<script>
  const list = document.getElementById("pictures"), listed = [...list.children];
  const order = document.getElementById("order"), words = document.getElementById("words");
  order.onchange = () => {
    const sign = { up: 1, down: -1 }[order.value];
    list.append(...(sign ? [...listed].sort((a, b) => sign * (a.dataset.cider - b.dataset.cider)) : listed));
  };
  words.oninput = () => {
    const wanted = words.value.toLowerCase().split(/\\s+/);
    for (const item of listed) {
      item.hidden = !wanted.every(word => item.textContent.toLowerCase().includes(word));
    }
    document.getElementById("count").value = `${listed.filter(item => !item.hidden).length} pictures`;
  };
  document.forms[0].onsubmit = () => false;
</script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of the gallery; `cider` in percent, `confidence` in (0, 1]."""

    picture: Picture
    caption: str
    confidence: float
    cider: float
    failures: Sequence[Failure] = ()

    @property
    def thumbnail(self) -> str:
        """The picture, small, as a data URL."""
        image = self.picture.open()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=60)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_gallery(file: Path, title: str, facts: Mapping[str, str], entries: Sequence[Entry], notes: str = "") -> None:
    """Write the page: `facts` as a table, `notes` as a paragraph, then the entries in their order."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as stream:
        # In pieces: a thousand pictures make a page of some 10 MB.
        stream.writelines(template.generate(title=title, facts=facts, entries=entries, notes=notes))
