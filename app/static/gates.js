// The gates over time: one small chart each, with a line that says in plain words what the gate does.
import { h, mean, number, percent, s, spoken } from "./dom.js";

// `share`: a mean activation in (0, 1), shown in per cent; otherwise a root mean square.
export const GATES = {
  forget: { symbol: "f", title: "Forget gate", share: true, says: "How much of its memory the network kept." },
  input: { symbol: "i", title: "Input gate", share: true, says: "How much of the new note it wrote into its memory." },
  output: { symbol: "o", title: "Output gate", share: true, says: "How much of its memory it showed when choosing the word." },
  reset: { symbol: "r", title: "Reset gate", share: true, says: "How much of the past it used to write the new note." },
  update: { symbol: "z", title: "Update gate", share: true, says: "How much of its memory the network kept." },
  candidate: { symbol: "C̃", title: "Candidate state", says: "How strong the new note was that it could write." },
  state: { symbol: "C", title: "Cell state", says: "How much its long-term memory held." },
  hidden: { symbol: "h", title: "Hidden state", says: "How loudly it spoke: what the choice of the word gets to see." },
};
const NAMES = ["layer 1, the sentence so far", "layer 2, sentence and picture together"];
const NAMES_WITHOUT_ATTENTION = ["layer 1, which began with the picture", "layer 2, which reads layer 1"];
const WIDTH = 320, TOP = 10, BOTTOM = 112, LEFT = 34, RIGHT = 306, HEIGHT = 168;

// Whether the model looks at the picture at every word; without attention it sees it once, before the first.
export const looks = (tokens) => Boolean(tokens[0].attention);
export const layerName = (layer, tokens) => (looks(tokens) ? NAMES : NAMES_WITHOUT_ATTENTION)[layer] ?? `layer ${layer + 1}`;
export const gateOf = (name) => GATES[name] ?? { symbol: name, title: name, says: "" };
export const shown = (gate, value) => (gate.share ? percent(value) : number(value));

// Draws every gate of `tokens` into `root`; returns light(index), which marks a word in all charts.
export function gateCharts(root, tokens, onWord) {
  const layers = tokens[0].gates.length;
  const names = Object.keys(tokens[0].gates[0]);
  const marks = [];
  root.replaceChildren(
    h("ul", { class: "layers" }, ...Array.from({ length: layers }, (_, layer) =>
      h("li", {}, s("svg", { viewBox: "0 0 28 8", class: "swatch", "aria-hidden": "true" },
        s("line", { x1: 1, x2: 27, y1: 4, y2: 4, class: `line layer${layer + 1}` })), layerName(layer, tokens)))),
    h("div", { class: "charts" }, ...names.map((name) => chart(name, tokens, layers, marks, onWord))),
  );
  return (index) => marks.forEach((mark) => mark(index));
}

function chart(name, tokens, layers, marks, onWord) {
  const gate = gateOf(name);
  const values = Array.from({ length: layers }, (_, layer) => tokens.map((token) => token.gates[layer][name]));
  const top = gate.share ? 1 : niceAbove(Math.max(...values.flat(), 0.1));
  const x = (t) => (tokens.length === 1 ? (LEFT + RIGHT) / 2 : LEFT + 8 + (t * (RIGHT - LEFT - 16)) / (tokens.length - 1));
  const y = (value) => BOTTOM - (value / top) * (BOTTOM - TOP);
  const step = (RIGHT - LEFT) / tokens.length;
  const rule = s("line", { class: "rule", y1: TOP, y2: BOTTOM, visibility: "hidden" });
  const dots = values.map((_, layer) => s("circle", { r: 4, class: `dot layer${layer + 1}`, visibility: "hidden" }));
  const words = tokens.map((token, t) =>
    s("text", { class: "tick word-tick", transform: `translate(${x(t) + 3} ${BOTTOM + 12}) rotate(-42)`, "text-anchor": "end" },
      token.text === "." ? "end" : shorten(token.shown)));
  const reading = h("span", { class: "reading" });
  marks.push((index) => {
    const on = index != null;
    rule.setAttribute("visibility", on ? "visible" : "hidden");
    words.forEach((word, t) => word.classList.toggle("on", t === index));
    if (on) for (const end of ["x1", "x2"]) rule.setAttribute(end, x(index));
    dots.forEach((dot, layer) => {
      dot.setAttribute("visibility", on ? "visible" : "hidden");
      if (!on) return;
      dot.setAttribute("cx", x(index));
      dot.setAttribute("cy", y(values[layer][index]));
    });
    reading.textContent = on ? values.map((row) => shown(gate, row[index])).join(" · ") : "";
  });
  const lines = values.map((row, layer) =>
    s("polyline", { class: `line layer${layer + 1}`, points: row.map((value, t) => `${x(t)},${y(value)}`).join(" ") }));
  const grid = [0, top / 2, top].map((value) => [
    s("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(value), y2: y(value) }),
    s("text", { class: "tick", x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" },
      gate.share ? `${100 * value}%` : String(+value.toFixed(2))),
  ]);
  const targets = tokens.map((_, t) => s("rect", {
    x: LEFT + t * step, y: 0, width: step, height: HEIGHT, class: "target",
    pointerenter: () => onWord(t), pointerleave: () => onWord(null),
  }));
  return h("figure", { class: "chart" },
    h("figcaption", {},
      h("span", { class: "gate-title" }, gate.title, " ", symbol(gate.symbol), reading),
      h("span", { class: "says" }, gate.says, " ", h("span", { class: "finding" }, finding(gate, values.at(-1), tokens)))),
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": spokenChart(gate, values, tokens) },
      ...grid, rule, ...lines, ...dots, ...words, ...targets),
  );
}

export const symbol = (letter) => h("i", { class: "symbol" }, letter, h("sub", {}, "t"));

// What the top layer did: its mean, and the word where it was furthest from that.
function finding(gate, row, tokens) {
  const average = mean(row);
  const far = row.reduce((best, value, t) => (Math.abs(value - average) > Math.abs(row[best] - average) ? t : best), 0);
  const word = tokens[far].text === "." ? ["the end"] : ["“", h("bdi", {}, tokens[far].shown), "”"];
  return [`${shown(gate, average)} on average, ${row[far] < average ? "least" : "most"} at `, ...word, ` (${shown(gate, row[far])}).`];
}

function spokenChart(gate, values, tokens) {
  const rows = values.map((row, layer) =>
    `${layerName(layer, tokens)}: ${row.map((value, t) => `${spoken(tokens[t])} ${shown(gate, value)}`).join(", ")}`);
  return `${gate.title} word by word. ${rows.join(". ")}.`;
}

const shorten = (text) => {
  const letters = Array.from(new Intl.Segmenter().segment(text), ({ segment }) => segment); // with their marks
  return letters.length > 9 ? `${letters.slice(0, 8).join("")}…` : text;
};
const niceAbove = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((factor) => factor * power >= value) * power;
};
