// One picture in detail: its words, where the model looked for each, what it nearly said, and its gates.
// The page and the file that `caption --explain` writes show the same view.
import { h, inSentence, laidOut, percent, spoken } from "./dom.js";
import { gateCharts, looks } from "./gates.js";

const CELL = 32; // pixels the overlay spends on one region; CSS stretches it over the picture
const GLIDE_MS = 160; // from one word's attention to the next
const PLAY_MS = 900; // a word, when played
const ONCE = "This model has no attention: it saw the picture once, before the first word, and lights up nothing.";

// Shows `caption` (of the API, with explain) of the picture at `src` in `root`.
// `image` is the API's; `walk` makes the link to the four steps; `extra` is put under the sentence.
export function explain(root, { caption, src, image, name, walk, extra }) {
  const tokens = laidOut(caption.text, caption.tokens);
  let pinned = null;
  let hovered = null;
  let playing = 0;

  const overlay = attentionOverlay(tokens);
  const photo = h("img", { src, alt: caption.text });
  const frame = h("div", { class: "frame" }, photo, overlay.canvas);
  frame.style.setProperty("--ratio", `${image.width} / ${image.height}`);
  frame.style.setProperty("--ratio-number", image.width / image.height);
  photo.addEventListener("error", () => {
    photo.remove();
    frame.classList.add("no-preview");
  });

  const words = tokens.map((token, t) => {
    const button = h("button", {
      type: "button", class: token.text === "." ? "word stop" : "word", "aria-pressed": "false",
      "aria-label": `${spoken(token)}, ${percent(token.probability)}`,
      pointerenter: (event) => event.pointerType !== "touch" && point(t),
      pointerleave: () => point(null),
      focus: () => point(t),
      blur: () => point(null),
      click: () => pin(pinned === t ? null : t),
    }, token.shown);
    button.style.setProperty("--p", token.probability);
    return button;
  });
  const sentence = h("p", { class: "sentence", dir: "auto", role: "group", "aria-label": "The caption, word by word", keydown: keys },
    ...inSentence(words, tokens));
  const panel = h("div", { class: "panel", "aria-live": "polite" });
  const play = h("button", { type: "button", class: "quiet", click: () => (playing ? stop() : start()) }, "▶ Play word by word");

  const charts = h("div", {});
  const gates = tokens[0].gates ? h("section", { class: "memory", "aria-label": "Its memory, word by word" },
    h("h3", {}, "Its memory, word by word"),
    h("p", { class: "lead" }, "A recurrent network remembers what it has said. Its gates decide, before each word, what to keep, what to add and what to show.",
      walk ? [" ", h("a", { href: walk, class: "walk" }, "Walk through the four steps with these numbers")] : null),
    charts) : null;

  root.replaceChildren(
    h("div", { class: "detail" },
      h("figure", { class: "picture" }, frame, h("figcaption", {}, looks(tokens) ? legend() : h("span", { class: "legend" }, ONCE), name ? h("span", { class: "name" }, name) : null)),
      h("div", { class: "reading-side" },
        h("h2", { class: "visually-hidden", dir: "auto" }, caption.text),
        sentence,
        h("p", { class: "confidence" }, `Confidence ${percent(caption.confidence)} `, h("span", {}, "(the words’ geometric mean) "), play),
        panel, extra)),
    ...(gates ? [gates] : []),
  );
  const light = gates ? gateCharts(charts, tokens, point) : () => {};
  show();

  function show() {
    const index = hovered ?? pinned;
    overlay.show(index);
    light(index);
    words.forEach((word, t) => {
      word.classList.toggle("on", t === index);
      word.setAttribute("aria-pressed", String(t === pinned));
    });
    frame.classList.toggle("looking", index != null && looks(tokens));
    panel.replaceChildren(...(index == null ? hint(tokens) : about(tokens[index])));
  }
  function point(index) {
    if (index != null && playing) stop();
    hovered = index;
    show();
  }
  function pin(index) {
    stop();
    pinned = index;
    show();
  }
  function keys(event) {
    const at = words.indexOf(document.activeElement);
    const onwards = getComputedStyle(sentence).direction === "rtl" ? -1 : 1;
    const step = { ArrowRight: onwards, ArrowLeft: -onwards }[event.key];
    if (event.key === "Escape") pin(null);
    if (step == null || at < 0) return;
    event.preventDefault();
    words[(at + step + words.length) % words.length].focus();
  }
  function start() {
    pinned = -1;
    hovered = null;
    play.textContent = "■ Stop";
    const next = () => {
      if (!root.isConnected || pinned === tokens.length - 1) return stop();
      pinned += 1;
      show();
    };
    playing = setInterval(next, PLAY_MS);
    next();
  }
  function stop() {
    clearInterval(playing);
    playing = 0;
    play.textContent = "▶ Play word by word";
  }
}

const hint = (tokens) => [h("p", { class: "hint" }, `Point at a word, or tap it, to see ${looks(tokens) ? "where the model looked and " : ""}what else it might have said. `, "The bar under each word shows how sure it was.")];

function about(token) {
  const options = [{ ...token, chosen: true }, ...(token.alternatives ?? [])];
  const looked = token.attention;
  const peak = looked ? Math.max(...looked.weights) : 0;
  return [
    h("h3", {}, token.text === "." ? "To end the sentence here" : h("span", {}, "“", h("bdi", {}, token.shown), "”"), " ",
      h("span", { class: "muted" }, "or…")),
    h("ol", { class: "options" }, ...options.map((option) => {
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--p", option.probability);
      return h("li", { class: option.chosen ? "chosen" : null },
        h("span", { class: "option", dir: "auto" }, spoken(option)), bar, h("span", { class: "value" }, percent(option.probability)));
    })),
    looked ? h("p", { class: "muted looked" },
      looked.sentinel > 0.005 ? `It relied ${percent(looked.sentinel)} on the sentence so far and ${percent(1 - looked.sentinel)} on the picture. ` : "",
      `The region it looked at most got ${percent(peak)} of its attention; an even look would give each ${percent(1 / looked.weights.length)}.`) : null,
  ];
}

// The canvas over the picture: dim where the model did not look, warm where it did.
function attentionOverlay(tokens) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  if (!looks(tokens)) return { canvas, show: () => {} };
  const { rows, columns } = tokens[0].attention;
  canvas.width = columns * CELL;
  canvas.height = rows * CELL;
  const context = canvas.getContext("2d");
  // Each word's map is scaled by its own peak, so that a look spread wide is as visible as a narrow one.
  const maps = tokens.map(({ attention }) => {
    const peak = Math.max(...attention.weights);
    return attention.weights.map((weight) => weight / peak);
  });
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let now = null;
  let frame = 0;

  function show(index) {
    cancelAnimationFrame(frame);
    if (index == null) return void (now = null);
    const from = now, to = maps[index], began = performance.now();
    const tick = (time) => {
      const share = from && !still.matches ? Math.min(Math.max((time - began) / GLIDE_MS, 0), 1) : 1;
      now = share === 1 ? to : to.map((value, i) => from[i] + (value - from[i]) * share);
      paint(context, now, rows, columns);
      if (share < 1) frame = requestAnimationFrame(tick);
    };
    tick(began);
  }
  return { canvas, show };
}

function paint(context, map, rows, columns) {
  const { width, height } = context.canvas;
  const image = context.createImageData(width, height);
  const across = taps(width, columns), down = taps(height, rows);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      let value = 0;
      for (const [row, a] of down[y]) for (const [column, b] of across[x]) value += a * b * map[row * columns + column];
      image.data.set(colour(value), at);
    }
  }
  context.putImageData(image, 0, 0);
}

// For each of `pixels`, the cells it mixes and their weights: a cubic B-spline, smooth and within the cells' range.
const taps = (pixels, cells) => Array.from({ length: pixels }, (_, pixel) => {
  const at = ((pixel + 0.5) * cells) / pixels - 0.5;
  const first = Math.floor(at), t = at - first;
  const weights = [(1 - t) ** 3 / 6, (4 - 6 * t * t + 3 * t ** 3) / 6, (1 + 3 * t + 3 * t * t - 3 * t ** 3) / 6, t ** 3 / 6];
  return weights.map((weight, k) => [Math.min(Math.max(first + k - 1, 0), cells - 1), weight]);
});

// 0 (did not look) to 1 (looked most) -> [red, green, blue, alpha].
function colour(value) {
  const dim = Math.max(0, 1 - 2 * value), warm = Math.max(0, 2 * value - 1);
  return dim > 0 ? [12, 14, 24, 172 * dim * (2 - dim)] : [255, 170, 30, 110 * warm];
}

function legend() {
  const canvas = h("canvas", { width: 120, height: 1, class: "ramp", "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(120, 1);
  for (let x = 0; x < 120; x++) image.data.set(colour(x / 119), 4 * x);
  context.putImageData(image, 0, 0);
  return h("span", { class: "legend" }, "passed over", canvas, "looked at");
}
