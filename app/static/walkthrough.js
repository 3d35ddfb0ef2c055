// The LSTM's four steps, with the numbers of one caption.
import { h, inSentence, m, number, percent, s, spoken } from "./dom.js";
import { gateOf, layerName, looks, shown, symbol } from "./gates.js";

const mi = (text) => m("mi", {}, text);
const mo = (text) => m("mo", {}, text);
const sub = (base, index) => m("msub", {}, typeof base === "string" ? mi(base) : base, typeof index === "string" ? mi(index) : index);
const at = (base, before) => sub(base, before ? m("mrow", {}, mi("t"), mo("−"), m("mn", {}, "1")) : "t");
const tilde = () => m("mover", { accent: "true" }, mi("C"), mo("~"));
const equation = (...parts) => m("math", { display: "block" }, m("mrow", {}, ...parts));
const squashed = (result, squash, gate) => equation(result, mo("="), mi(squash), mo("("), sub("W", gate), mo("·"),
  mo("["), at("h", true), mo(","), at("x"), mo("]"), mo("+"), sub("b", gate), mo(")"));

const STEPS = [
  {
    title: "Forget gate", gates: ["forget"],
    equations: () => [squashed(at("f"), "σ", "f")],
    says: "First it looks at the word it has just read and at what it said last, and decides for each of its memories how much to keep: 1 keeps everything, 0 wipes it.",
  },
  {
    title: "Input gate and candidate state", gates: ["input", "candidate"],
    equations: () => [squashed(at("i"), "σ", "i"), squashed(at(tilde()), "tanh", "C")],
    says: "Then it drafts a note, the candidate, and decides with a second gate how much of that note is worth writing down.",
  },
  {
    title: "State update", gates: ["state"], before: true,
    equations: () => [equation(at("C"), mo("="), at("f"), mo("⊙"), at("C", true), mo("+"), at("i"), mo("⊙"), at(tilde()))],
    says: "Now the memory changes: what is kept of the old plus what is written of the new. It is scaled and added to, never rewritten whole, so an early word can last to the end of the sentence.",
  },
  {
    title: "Output gate", gates: ["output", "hidden"],
    equations: () => [squashed(at("o"), "σ", "o"), equation(at("h"), mo("="), at("o"), mo("⊙"), mi("tanh"), mo("("), at("C"), mo(")"))],
    says: "Last it decides how much of its memory to show. What it shows, the hidden state, goes on to the next layer and the choice of the word.",
  },
];

// Shows the four steps in `root` with the numbers of `tokens`: [{text, shown, before, gates, attention}], as `laidOut`
// makes them, `attention` anything true where there is one.
export function walkthrough(root, tokens) {
  if (!("forget" in tokens[0].gates[0])) {
    const names = Object.keys(tokens[0].gates[0]).join(", ");
    root.replaceChildren(h("p", { class: "lead" }, `This caption was written by a cell that is no LSTM: it reports ${names}. Its charts show them; the four steps are those of an LSTM.`));
    return;
  }
  let index = Math.min(1, tokens.length - 1);
  let layer = tokens[0].gates.length - 1;

  const words = tokens.map((token, t) => h("button", {
    type: "button", class: token.text === "." ? "word stop" : "word", "aria-label": spoken(token), click: () => choose(t, layer),
  }, token.shown));
  const layers = tokens[0].gates.map((_, l) => h("button", { type: "button", click: () => choose(index, l) }, capital(layerName(l, tokens))));
  const reading = h("p", { class: "lead", "aria-live": "polite" });
  const picture = h("div", { class: "cell-frame", tabindex: "0", role: "group", "aria-label": "The cell as a drawing" });
  const steps = h("ol", { class: "steps" });
  root.replaceChildren(
    h("p", { class: "sentence", dir: "auto", role: "group", "aria-label": "Choose a word" }, ...inSentence(words, tokens)),
    h("div", { class: "segmented", role: "group", "aria-label": "Choose a layer" }, ...layers),
    reading, picture, steps,
    h("p", { class: "muted small" }, "σ squeezes any number into 0 to 1 and tanh into −1 to 1; ⊙ multiplies unit by unit. Every layer has hundreds of units, each with its own numbers: of the three gates you see the average, of the candidate, the cell state and the hidden state the typical size (root mean square)."),
  );
  choose(index, layer);

  function choose(toIndex, toLayer) {
    [index, layer] = [toIndex, toLayer];
    words.forEach((word, t) => {
      word.setAttribute("aria-pressed", String(t === index));
      word.classList.toggle("on", t === index);
    });
    layers.forEach((button, l) => button.setAttribute("aria-pressed", String(l === layer)));
    const quoted = (token) => ["“", h("bdi", {}, token.shown), "”"];
    const read = index === 0 ? ["the sign that a sentence starts"] : quoted(tokens[index - 1]);
    const said = tokens[index].text === "." ? ["that the sentence ends"] : quoted(tokens[index]);
    reading.replaceChildren("It has just read ", ...read, " and is about to say ", ...said, `. ${layer === 0 ? "In layer 1, where x is that word, this happens:" : "In layer 2, where x is what layer 1 shows" + (looks(tokens) ? " and what the attention sees in the picture" : "") + ", this happens:"}`);
    const now = tokens[index].gates[layer];
    const before = index === 0 ? null : tokens[index - 1].gates[layer];
    picture.replaceChildren(cell(now));
    steps.replaceChildren(...STEPS.map((step) => card(step, now, before)));
  }

  function card(step, now, before) {
    const numbers = step.gates.map((name) => {
      const gate = gateOf(name);
      const old = !step.before ? null : before ? [number(before[name]), " → "] : null;
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      const top = gate.share ? 1 : Math.max(1, ...tokens.map((token) => token.gates[layer][name]));
      bar.style.setProperty("--p", now[name] / top);
      return h("p", { class: "figure" }, h("span", {}, symbol(gate.symbol), " = ", h("b", {}, ...(old ?? []), shown(gate, now[name]))), bar,
        h("span", { class: "muted small" }, inWords(name, now[name], before?.[name])));
    });
    return h("li", {}, h("h3", {}, step.title), h("div", { class: "maths" }, ...step.equations()), h("p", {}, step.says), ...numbers);
  }
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function inWords(name, value, before) {
  switch (name) {
    case "forget": return `On average it keeps ${percent(value)} of each memory.`;
    case "input": return `It writes down ${percent(value)} of the note, on average.`;
    case "candidate": return "The note’s typical size, before the input gate.";
    case "state":
      if (before == null) return "The memory’s typical size after this first step.";
      return value >= before ? "The memory’s typical size has grown." : "The memory’s typical size has shrunk.";
    case "output": return `It shows ${percent(value)} of its memory, on average.`;
    default: return "The typical size of what it shows.";
  }
}

// The cell as a drawing: the memory runs along the top, each gate is a valve filled as far as it is open.
function cell(now) {
  const label = (x, y, letter, value, anchor = "middle") =>
    s("text", { x, y, "text-anchor": anchor, class: "label" },
      s("tspan", { class: "letter" }, letter), s("tspan", { class: "small-t", dy: 4 }, "t"), s("tspan", { dy: -4 }, `  ${value}`));
  const valve = (x, y, share) => [
    s("circle", { cx: x, cy: y, r: 20, class: "valve" }),
    s("path", { d: wedge(x, y, 20, share), class: "fill" }),
    s("circle", { cx: x, cy: y, r: 20, class: "ring" }),
  ];
  const operator = (x, y, sign) => [s("circle", { cx: x, cy: y, r: 13, class: "operator" }), s("text", { x, y: y + 6, "text-anchor": "middle", class: "sign" }, sign)];
  const wire = (d, arrow = true) => s("path", { d, class: "wire", "marker-end": arrow ? "url(#arrow)" : null });
  return s("svg", { viewBox: "0 0 760 300", class: "cell", role: "img", "aria-label": `The cell: forget gate ${percent(now.forget)} open, input gate ${percent(now.input)}, output gate ${percent(now.output)}.` },
    s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, s("path", { d: "M0 0 8 4 0 8z", class: "head" }))),
    s("rect", { x: 90, y: 18, width: 580, height: 238, rx: 22, class: "box" }),
    // The memory, from the old to the new.
    wire("M20 60H176", true), wire("M204 60H346"), wire("M374 60H740"),
    s("text", { x: 20, y: 46, class: "label" }, s("tspan", { class: "letter" }, "C"), s("tspan", { class: "small-t", dy: 4 }, "t−1")),
    label(740, 46, "C", number(now.state), "end"),
    // What was said last and the word just read, to all four.
    wire("M20 230H530", false), s("text", { x: 20, y: 216, class: "label" }, s("tspan", { class: "letter" }, "h"), s("tspan", { class: "small-t", dy: 4 }, "t−1")),
    wire("M130 292V230", false), s("text", { x: 144, y: 288, class: "label" }, s("tspan", { class: "letter" }, "x"), s("tspan", { class: "small-t", dy: 4 }, "t")),
    ...[190, 310, 420, 530].map((x) => wire(`M${x} 230V182`)),
    // The gates and what they open.
    ...valve(190, 160, now.forget), wire("M190 140V75"), ...operator(190, 60, "×"), label(199, 210, "f", percent(now.forget), "start"),
    ...valve(310, 160, now.input), label(319, 210, "i", percent(now.input), "start"),
    wire("M310 140V112H347"), ...operator(360, 112, "×"), wire("M360 99V75"), ...operator(360, 60, "+"),
    s("rect", { x: 392, y: 142, width: 56, height: 36, rx: 9, class: "squash" }), s("text", { x: 420, y: 165, "text-anchor": "middle", class: "sign" }, "tanh"),
    wire("M420 142V112H375"), label(429, 210, "C̃", number(now.candidate), "start"),
    ...valve(530, 160, now.output), label(539, 210, "o", percent(now.output), "start"),
    wire("M620 60V86"), s("rect", { x: 592, y: 88, width: 56, height: 32, rx: 9, class: "squash" }), s("text", { x: 620, y: 109, "text-anchor": "middle", class: "sign" }, "tanh"),
    wire("M620 120V145"), wire("M550 160H605"), ...operator(620, 160, "×"), wire("M633 160H700V230H740"),
    label(740, 252, "h", number(now.hidden), "end"),
  );
}

function wedge(x, y, radius, share) {
  const angle = 2 * Math.PI * Math.min(share, 0.9999);
  return `M${x} ${y}V${y - radius}A${radius} ${radius} 0 ${share > 0.5 ? 1 : 0} 1 ${x + radius * Math.sin(angle)} ${y - radius * Math.cos(angle)}Z`;
}

// What the walk-through needs of a caption, short enough for the fragment of an address: it never leaves the browser.
export const pack = (tokens) => encodeURIComponent(JSON.stringify(tokens.map(({ text, shown, before, gates, attention }) =>
  [text, gates.map((layer) => Object.fromEntries(Object.entries(layer).map(([name, value]) => [name, +value.toFixed(4)]))), shown, before, attention ? 1 : 0])));

// The tokens in such a fragment; null for anything else.
export function unpack(fragment) {
  try {
    const tokens = JSON.parse(decodeURIComponent(fragment)).map(([text, gates, shown = text, before = " ", attention = 1]) =>
      ({ text: String(text), gates, shown: String(shown), before: String(before), attention }));
    const sound = tokens.length > 0 && tokens.every(({ gates }) =>
      gates.length > 0 && gates.every((layer) => Object.values(layer).every((value) => Number.isFinite(value))));
    return sound ? tokens : null;
  } catch {
    return null;
  }
}
