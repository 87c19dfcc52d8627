// Elements, scales and axes. Text always goes in as text, never as markup: names come from files and clients.

const SVG = "http://www.w3.org/2000/svg";

function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function v(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, String(value));
  element.append(...children.filter((child) => child !== null).map((child) => child instanceof Node ? child : String(child)));
  return element;
}

/** Change text only when it changes, so that a reader's selection and a screen reader are left alone. */
function say(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}

/** A list's items, rewritten only when they changed. */
function sayAll(id, texts) {
  const list = document.getElementById(id);
  if ([...list.children].map((item) => item.textContent).join("\n") === texts.join("\n")) return;
  list.replaceChildren(...texts.map((text) => h("li", {}, text)));
}

function put(id, ...elements) {
  document.getElementById(id).replaceChildren(...elements);
}

const CHARTS = ["traffic", "ttft", "tpot", "cost", "predicted-ttft", "predicted-tpot"];
const widths = new Map();

/** How wide each chart's place is. Read all at once and before anything is written: each read after a write would make
 * the browser lay out the whole page again. */
function measure() {
  for (const id of CHARTS) widths.set(id, document.getElementById(id).clientWidth);
  widths.set("page", document.documentElement.clientWidth);
}

/** A chart's frame: as wide as its place, with room for labels. */
function frame(id, height, left = 46) {
  const width = Math.max(240, widths.get(id) || 600);
  return { width, height, left, right: width - 10, top: 12, bottom: height - 22 };
}

function picture(box, label, ...children) {
  return v("svg", { viewBox: `0 0 ${box.width} ${box.height}`, width: box.width, height: box.height, role: "img", "aria-label": label }, ...children);
}

/** Round steps from 0 to at least `most`. */
function ticks(most, wanted = 4) {
  if (!(most > 0)) return [0, 1];
  const raw = most / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let i = 0; i * step < most + step * 0.999; i += 1) found.push(i * step);
  return found;
}

/** Powers of ten, and 2 and 5 between them where there is room, from `low` to `high`. */
function logTicks(low, high, most = 8) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const each of [1, 2, 5]) all.push(Number((each * 10 ** power).toPrecision(3)));
  }
  const inside = all.filter((each) => each >= low * 0.999 && each <= high * 1.001);
  const tens = inside.filter((each) => Math.abs(Math.log10(each) - Math.round(Math.log10(each))) < 1e-6);
  return inside.length <= most || tens.length < 2 ? inside : tens;
}

/** The nearest 1, 2 or 5 times a power of ten at or below (or above) a value. */
function roundDown(value) {
  const power = 10 ** Math.floor(Math.log10(value) + 1e-9);
  return [5, 2, 1].map((each) => each * power).find((each) => each <= value * 1.0001);
}

function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value) + 1e-9);
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= value * 0.9999);
}

function scale(low, high, from, to) {
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

function logScale(low, high, from, to) {
  const straight = scale(Math.log(low), Math.log(high), from, to);
  return (value) => straight(Math.log(Math.min(high, Math.max(low, value))));
}

/** Lines across with their values at the left. */
function acrossAxis(box, values, y, text) {
  return v("g", {}, ...values.flatMap((value) => [
    v("line", { class: "axis", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
    v("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, round(text(value))),
  ]));
}

/** A tick's text without zeros that say nothing. */
function round(text) {
  return text.startsWith("$") ? text.replace(/\.0+$/, "") : text.replace(/\.(\d*?)0+(?= |$)/, (_, rest) => rest === "" ? "" : `.${rest}`);
}

/** Minutes back from now. */
function timeAxis(box, x) {
  const every = box.width < 560 ? 300 : 120;
  const texts = [];
  for (let ago = 0; ago <= KEEP_S; ago += every) {
    const anchor = ago === 0 ? "end" : ago === KEEP_S ? "start" : "middle";
    texts.push(v("text", { x: x(-ago), y: box.bottom + 16, "text-anchor": anchor }, ago === 0 ? "now" : `${ago / 60} min ago`));
  }
  return v("g", {}, v("line", { class: "base", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }), ...texts);
}

/** Diagonal lines that say Mixture-of-Experts without colour. */
function hatching(id) {
  return v("pattern", { id, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    v("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 7 }));
}

/** One shape at each of `points`, by architecture, as one element however many there are. */
function marks(kind, points, size, tone) {
  const n = (value) => value.toFixed(1);
  const shape = ([x, y]) => {
    if (kind === "moe") return `M${n(x - size)} ${n(y - size)}h${n(2 * size)}v${n(2 * size)}h${n(-2 * size)}Z`;
    if (kind === "dense") return `M${n(x - size)} ${n(y)}a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0Z`;
    return `M${n(x - size)} ${n(y + size)}H${n(x + size)}L${n(x)} ${n(y - size)}Z`;
  };
  return v("path", { class: `dot ${tone}`, d: points.map(shape).join("") });
}

function mark(kind, x, y, size, tone) {
  return marks(kind, [[x, y]], size, tone);
}
