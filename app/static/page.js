// The page: pictures in, a card each, and one of them in detail.
import { about, ApiError, caption, events } from "./api.js";
import { h, laidOut, percent } from "./dom.js";
import { explain } from "./explain.js";
import { dropped, pictures } from "./files.js";
import { pack } from "./walkthrough.js";

const AT_ONCE = 4; // requests in flight; the service batches them
const TAGS = 5; // shown on a card
const find = (id) => document.getElementById(id);
const [stage, cards, drop, status] = ["stage", "cards", "drop", "status"].map(find);
const items = [];
let chosen = null;
let running = 0;
let paused = false;
let began = 0;
let maxBytes = Infinity;
let facts = null;

// In.

for (const input of document.querySelectorAll("input[type=file]")) {
  input.addEventListener("change", () => {
    add(input.id === "folder" ? pictures(input.files) : input.files);
    input.value = "";
  });
}
find("pick").addEventListener("click", () => find("file").click());
find("pick-folder").addEventListener("click", () => find("folder").click());
find("shoot").addEventListener("click", () => find("camera").click());
find("sample").addEventListener("click", async () => {
  const response = await fetch(new URL("sample.jpg", import.meta.url));
  add([new File([await response.blob()], "sample.jpg", { type: "image/jpeg" })]);
});
addEventListener("paste", (event) => event.clipboardData?.files.length && add(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  try {
    add(await dropped(event.dataTransfer));
  } catch (error) {
    status.textContent = `What was dropped cannot be read: ${error.message}`;
  }
});

function add(files) {
  const fresh = Array.from(files, (file) => ({ file, name: file.name || "pasted picture", src: URL.createObjectURL(file), state: "waiting" }));
  if (!fresh.length) {
    status.textContent = "There is no picture in it.";
    return;
  }
  if (!running) {
    began = performance.now();
    items.forEach((item) => (item.before = true)); // speed and time left are this lot's
  }
  items.push(...fresh);
  fresh.forEach(makeCard);
  document.body.classList.add("busy-page");
  if (items.length === 1) open(items[0], { scroll: false });
  work();
}

// Captions.

function work() {
  while (running < AT_ONCE && !paused) {
    const item = items.find(({ state }) => state === "waiting");
    if (!item) break;
    run(item);
  }
  progress();
}

async function run(item) {
  running += 1;
  item.state = "working";
  draw(item);
  try {
    // A single picture is about to be looked at in detail: one request instead of two.
    item.answer = await ask(item, item === chosen ? { explain: true } : {});
    item.state = "done";
    if (!facts) learn(); // what it would not tell before it had a key
    status.textContent = `${item.name}: ${item.answer.caption}`;
  } catch (error) {
    item.state = "failed";
    item.error = { message: error.message, code: error.problem?.code };
    status.textContent = `${item.name}: ${error.message}`;
    if (!(error instanceof ApiError)) throw error;
  } finally {
    running -= 1;
    draw(item);
    if (item === chosen) show(item);
    work();
  }
}

function ask(item, params) {
  if (item.file.size > maxBytes) {
    const mb = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
    throw new ApiError(`The file has ${mb(item.file.size)}; the service takes up to ${mb(maxBytes)}.`, { code: "too_large" });
  }
  return caption(item.file, params);
}

function progress() {
  const done = items.filter(({ state }) => state === "done" || state === "failed");
  const lot = items.filter(({ before }) => !before);
  const lotDone = done.filter(({ before }) => !before).length;
  const failed = items.filter(({ state }) => state === "failed").length;
  const rate = lotDone / ((performance.now() - began) / 1000);
  const left = lot.length - lotDone;
  document.body.classList.toggle("single", items.length === 1);
  find("progress").max = Math.max(lot.length, 1);
  find("progress").value = lotDone;
  find("progress").hidden = find("pause").hidden = !left;
  find("count").textContent = left
    ? `${lotDone} of ${lot.length}${lotDone > 2 && !paused ? ` · ${rate.toFixed(1)} a second · ${time(left / rate)} left` : ""}`
    : `${items.length} pictures${failed ? `, ${failed} of them failed` : ""}`;
  for (const id of ["json", "csv"]) find(id).disabled = !done.length;
}

function pause(on) {
  paused = on;
  find("pause").textContent = on ? "Resume" : "Pause";
  if (!on) {
    began = performance.now(); // speed and time left are those since
    for (const item of items) if (item.answer || item.error) item.before = true;
  }
  work();
}
find("pause").addEventListener("click", () => pause(!paused));

events.addEventListener("lost", () => {
  find("lost").textContent = "The service cannot be reached. This page goes on as soon as it answers.";
  find("lost").hidden = false;
});
events.addEventListener("found", () => {
  find("lost").hidden = true;
  learn(); // it may be another one
});

const time = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);

// Cards.

// Only the cards about to be seen are drawn: of the others there is a name, as tall as they were.
const near = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    const item = items.find(({ card }) => card === target);
    if (!item || item.near === isIntersecting) continue;
    if (!isIntersecting) target.style.minHeight = `${target.offsetHeight}px`;
    item.near = isIntersecting;
    draw(item);
    if (isIntersecting) target.style.minHeight = "";
  }
}, { rootMargin: "100% 0px" });

function makeCard(item) {
  item.card = h("li", { class: "card" });
  cards.append(item.card);
  draw(item);
  near.observe(item.card);
}

function draw(item) {
  const { card, answer, state } = item;
  card.dataset.state = state;
  if (!item.near && !card.contains(document.activeElement)) {
    item.thumb = null; // and with it what the browser has decoded
    card.replaceChildren(h("p", { class: "name" }, item.name));
    return;
  }
  item.thumb ??= thumbnail(item);
  card.replaceChildren(
    h("button", { type: "button", class: "thumb", "aria-label": `Show ${item.name} in detail`, disabled: state !== "done", click: () => open(item) }, item.thumb),
    h("div", { class: "card-body" },
      h("p", { class: "name" }, item.name),
      state === "done" ? h("p", { class: "caption", dir: "auto" }, answer.caption)
        : state === "failed" ? h("p", { class: "error" }, item.error.message)
        : h("p", { class: "muted" }, state === "waiting" ? "Waiting…" : "Looking…"),
      state === "done" ? [remarks(answer), tags(answer, TAGS)] : null,
      state === "done" ? h("p", { class: "actions" },
        h("button", { type: "button", class: "quiet", click: () => open(item) }, "Why?"),
        copyButton(() => answer.caption), copyButton(() => html(item), "HTML", "HTML copied."), others(item, card)) : null,
      state === "failed" && item.error.code !== "too_large" ? h("p", { class: "actions" }, h("button", { type: "button", class: "quiet", click: () => retry(item) }, "Try again")) : null,
    ),
  );
}

// What a person should know before the caption is used.
function remarks({ review, decorative }) {
  if (decorative) return h("p", { class: "remark" }, "Shows nothing: its alternative text is empty.");
  return review ? h("p", { class: "remark" }, "Not sure: have a look at this one.") : null;
}

function tags({ tags: said }, count) {
  const likely = (said ?? []).slice(0, count);
  return likely.length ? h("ul", { class: "tags", "aria-label": "Tags" }, ...likely.map(({ text, probability }) => h("li", {}, text, " ", h("span", { class: "muted" }, percent(probability))))) : null;
}

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;");

// The picture in a page, with the caption as its alternative text.
function html({ name, answer: { alt, image } }, text = alt) {
  return `<img src="${escaped(encodeURI(name))}" alt="${escaped(text)}" width="${image.width}" height="${image.height}">`;
}

function thumbnail(item) {
  const image = h("img", { src: item.src, alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(item.thumb = h("span", { class: "blank" }, "No preview")));
  return image;
}

function retry(item) {
  item.state = "waiting";
  draw(item);
  work();
}

function copyButton(text, label = "Copy", done = "Caption copied.") {
  const button = h("button", { type: "button", class: "quiet", click: async () => {
    await copy(text());
    button.textContent = "Copied";
    status.textContent = done;
    setTimeout(() => (button.textContent = label), 1500);
  } }, label);
  return button;
}

// navigator.clipboard exists over HTTPS and on localhost only.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// A button that asks for other captions of `item` and lists them under `place`.
function others(item, place, onPick) {
  const button = h("button", { type: "button", class: "quiet", "aria-expanded": "false", click: async () => {
    const old = place.querySelector(".others");
    button.setAttribute("aria-expanded", String(!old));
    if (old) return old.remove();
    const list = h("ol", { class: "others" }, h("li", { class: "muted" }, "Looking again…"));
    place.append(list);
    try {
      item.others ??= (await caption(item.file, { num_captions: 5, explain: true })).captions.filter(({ text }) => text !== item.answer.caption);
      list.replaceChildren(...item.others.map((other) => h("li", {},
        onPick ? h("button", { type: "button", class: "link", dir: "auto", click: () => onPick(other) }, other.text) : h("span", { dir: "auto" }, other.text),
        h("span", { class: "value" }, percent(other.confidence)))));
    } catch (error) {
      list.replaceChildren(h("li", { class: "error" }, error.message));
    }
  } }, "Other captions");
  return button;
}

// One picture in detail.

function open(item, { scroll = true } = {}) {
  chosen = item;
  for (const { card } of items) card.classList.toggle("chosen", card === item.card);
  show(item);
  if (!scroll) return;
  stage.focus({ preventScroll: true });
  stage.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

async function show(item, other) {
  stage.hidden = false;
  if (item.state === "waiting" || item.state === "working") {
    const photo = h("img", { src: item.src, alt: "" });
    stage.replaceChildren(h("div", { class: "detail" }, h("div", { class: "picture" }, h("div", { class: "frame waiting" }, photo)),
      h("div", { class: "reading-side" }, h("p", { class: "sentence muted" }, "Looking…"))));
    return;
  }
  if (item.state === "failed") {
    stage.replaceChildren(h("p", { class: "error big", role: "alert" }, `${item.name}: ${item.error.message}`));
    return;
  }
  try {
    if (!item.answer.captions[0].tokens[0].gates) item.answer = await ask(item, { explain: true });
  } catch (error) {
    stage.replaceChildren(h("p", { class: "error big", role: "alert" }, `${item.name}: ${error.message}`));
    return;
  }
  if (chosen !== item) return; // another was opened in the meantime
  const said = other ?? item.answer.captions[0];
  const best = said === item.answer.captions[0];
  const extra = h("div", { class: "extra" });
  const back = best ? null : h("button", { type: "button", class: "quiet", click: () => show(item) }, "Back to the best caption");
  extra.append(remarks(item.answer) ?? "", tags(item.answer) ?? "");
  extra.append(h("p", { class: "actions" }, copyButton(() => said.text), copyButton(() => html(item, best ? item.answer.alt : said.text), "HTML", "HTML copied."), others(item, extra, (picked) => show(item, picked)), back ?? "",
    h("button", { type: "button", class: "quiet", click: () => download("json", [item]) }, "JSON"),
    items.length > 1 ? h("button", { type: "button", class: "quiet", click: close }, "Close") : ""));
  const walk = `${new URL("lstm.html", import.meta.url)}#${pack(laidOut(said.text, said.tokens))}`;
  explain(stage, { caption: said, src: item.src, image: item.answer.image, name: `${item.name} · ${item.answer.image.width} × ${item.answer.image.height}`, walk, extra });
}

function close() {
  stage.hidden = true;
  chosen?.card.classList.remove("chosen");
  chosen?.card.querySelector("button")?.focus();
  chosen = null;
}

// Out.

find("json").addEventListener("click", () => download("json", items));
find("csv").addEventListener("click", () => download("csv", items));
find("clear").addEventListener("click", () => {
  for (const { src } of items) URL.revokeObjectURL(src);
  items.length = 0;
  near.disconnect();
  pause(false);
  cards.replaceChildren();
  stage.hidden = true;
  chosen = null;
  document.body.classList.remove("busy-page");
  progress();
  find("pick").focus();
});

function download(kind, which) {
  const rows = which.filter(({ state }) => state === "done" || state === "failed");
  const text = kind === "json"
    ? JSON.stringify(rows.map(({ name, answer, error }) => (answer ? { filename: name, result: answer } : { filename: name, error })), null, 2)
    : [["filename", "caption", "confidence", "error", "alt", "review", "tags"],
      ...rows.map(({ name, answer, error }) => [name, answer?.caption, answer?.confidence, error?.message, answer?.alt, answer?.review, answer?.tags?.map(({ text }) => text).join(", ")])]
      .map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  const href = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/csv" }));
  h("a", { href, download: `captions.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

const cell = (value) => (/[",\r\n]/.test(value ?? "") ? `"${value.replaceAll('"', '""')}"` : String(value ?? ""));

async function learn() {
  facts = await about();
  if (!facts) return;
  maxBytes = facts.limits.max_upload_bytes;
  find("model").textContent = `${facts.name} ${facts.version}, on ${facts.device.toUpperCase()}`;
}

find("shoot").hidden = !matchMedia("(pointer: coarse)").matches;
await learn();
