// Small helpers to build elements; every text goes in as a text node, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

const build = (namespace) => (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
};

export const h = build("http://www.w3.org/1999/xhtml");
export const s = build(SVG);
export const m = build(MATHML);

export const percent = (p) => (p > 0 && p < 0.005 ? "<1%" : `${Math.round(100 * p)}%`);
export const number = (x) => x.toFixed(Math.abs(x) < 9.995 ? 2 : 1).replace("-", "−");
export const spoken = (token) => (token.text === "." ? "end of the caption" : token.shown ?? token.text);
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The tokens, each with what the sentence `text` shows of it and what stands before it there: capitals, spaces and the
// full stop are those of its script. A script without a full stop gets a mark for the decision to end.
export function laidOut(text, tokens) {
  let at = 0;
  return tokens.map((token, t) => {
    if (token.text === "." && t === tokens.length - 1) return { ...token, shown: at < 0 ? "." : text.slice(at) || "∎", before: "" };
    const plain = token.text.replace(/^##(?=.)/, "");
    const before = at < 0 ? " " : text.slice(at).match(/^\s*/)[0];
    const shown = at < 0 ? plain : text.slice(at + before.length, at + before.length + plain.length);
    if (at >= 0) at = shown.toLowerCase() === plain.toLowerCase() ? at + before.length + plain.length : -1;
    return at < 0 ? { ...token, shown: plain, before: t && plain === token.text ? " " : "" } : { ...token, shown, before };
  });
}

// The words' elements with what stands between them; a full stop stays on its word's line.
export function inSentence(words, tokens) {
  const stops = tokens.length > 1 && tokens.at(-1).text === ".";
  const ends = stops ? [h("span", { class: "last" }, ...words.slice(-2))] : [];
  return [...words.slice(0, stops ? -2 : words.length), ...ends].flatMap((word, t) => [tokens[t].before, word]);
}
