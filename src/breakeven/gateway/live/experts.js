// The load of the experts: a heat map of every backend whose routing is seen, bars where only totals are known.

const EXPERTS_EVERY_S = 10;
const LONGEST_LIST = 8;
/** Shares over the mean at which a cell's shade changes. */
const SHADES = [0.5, 0.8, 1.25, 2, 4];
const SHADE_WORDS = ["below half the mean", "0.5 to 0.8", "0.8 to 1.25: about the mean", "1.25 to 2", "2 to 4", "4 times the mean or more"];
const SOURCES = { observed: "looked at", returned: "told by the engine with its answers", counted: "counted by the engine" };
const experts = { seen: null, asked: -Infinity, drawn: "", opened: new Set(), at: new Map() };

/** Ask for them, every ten seconds and only where the state says that there is something to see. */
async function lookAtExperts() {
  const some = history.last !== null && history.last.snapshot.backends.some((each) => each.experts);
  if (!some) { experts.seen = null; return; }
  if (clock() - experts.asked < EXPERTS_EVERY_S) return;
  experts.asked = clock();
  const answer = await fetch("/admin/experts", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  experts.seen = await answer.json();
  if (!view.paused && !document.hidden) drawExperts(history.last.snapshot);
}

function drawExperts(snapshot) {
  const mapped = experts.seen === null ? [] : experts.seen.backends.filter((each) => each.layers.length > 0);
  const named = new Set(mapped.map((each) => each.backend));
  const totals = snapshot.backends.filter((each) => each.expert_load !== null && each.expert_load !== undefined && !named.has(each.name));
  document.getElementById("experts-section").hidden = mapped.length + totals.length === 0;
  put("experts", ...totals.map(expertBars));
  // Thousands of cells: drawn anew only when there is something new, so that a reader's place in them is kept.
  const now = JSON.stringify([experts.seen?.time_s ?? null, [...named], widths.get("page")]);
  if (now === experts.drawn) return;
  experts.drawn = now;
  const focus = document.activeElement?.dataset?.heat;
  put("heat", ...mapped.map(expertMap));
  if (focus) document.querySelector(`[data-heat="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

/** One bar an expert, with the line of an even share. */
function expertBars(backend) {
  const load = backend.expert_load;
  const width = Math.max(240, Math.min(480, widths.get("page") - 32));
  const box = { width, height: 150, left: 46, right: width - 10, top: 12, bottom: 128 };
  const even = 1 / load.length;
  const most = Math.max(...load);
  const steps = ticks(most, 3);
  const y = scale(0, steps[steps.length - 1], box.bottom, box.top);
  const wide = (box.right - box.left) / load.length;
  const bars = load.map((share, i) => v("rect", {
    class: `bar ${colour(backend.name)}`, x: box.left + i * wide + wide * 0.08, width: wide * 0.84, y: y(share), height: box.bottom - y(share),
  }));
  const label = `Share of routed tokens by expert of ${backend.name}: the busiest has ${significant(most / even, 2)} times an even share`;
  return h("figure", {}, h("h3", {}, backend.name), picture(box, label, acrossAxis(box, steps, y, (value) => `${significant(100 * value, 2)} %`), ...bars,
    v("line", { class: "slo", x1: box.left, x2: box.right, y1: y(even), y2: y(even) }),
    v("text", { x: box.left, y: box.bottom + 16 }, "expert 0"),
    v("text", { x: box.right, y: box.bottom + 16, "text-anchor": "end" }, `${load.length - 1}`)),
  h("figcaption", {}, `Share of routed tokens. The busiest of ${load.length} experts has ${significant(most / even, 2)} times an even share (dotted).`));
}

/** A share as a percentage that keeps small ones apart from nothing. */
function part(share) {
  if (share === null || share === undefined) return "–";
  return share === 0 ? "0 %" : `${significant(100 * share, 2)} %`;
}

function busiest(layer) {
  return layer.shares.indexOf(Math.max(...layer.shares));
}

/** What it means, in sentences. */
function expertWords(each) {
  const all = each.layers.length * each.n_experts;
  const worst = each.layers.find((layer) => layer.layer === each.worst_layer) ?? each.layers[0];
  const is = (number) => `${count(number)} of ${count(all)} ${number === 1 ? "is" : "are"}`;
  const found = [
    `Layer ${worst.layer}’s busiest expert (${busiest(worst)}) has ${significant(worst.imbalance, 2)} times the mean; ` +
    `${each.dead === 0 ? "no expert is known to be dead" : `${count(each.dead)} of ${count(all)} experts ${each.dead === 1 ? "has" : "have"} seen nothing`}; ` +
    `${is(each.hot)} above twice the mean by more than chance.`,
  ];
  found.push(each.drift === null || each.drift === undefined
    ? "Drift is not told yet: it takes a day, and days before it."
    : `Drift since last week: ${part(each.drift)} of the choices go elsewhere${each.drift_by_chance === null || each.drift_by_chance === undefined ? "" : ` (${part(each.drift_by_chance)} would by chance)`}.`);
  const told = each.requests === null || each.requests === undefined ? many(each.tokens, "token") : `${many(each.requests, "request")} and ${many(each.tokens, "token")}`;
  const share = each.observe === null || each.observe === undefined ? "" : `, ${part(each.observe)} of the requests are to be`;
  const cost = each.cpu_s > 0 && each.engine_cpu_s > 0 ? ` Looking took ${part(each.cpu_s / each.engine_cpu_s)} of the engine’s CPU time.` : "";
  const first = SOURCES[each.source] ?? each.source;
  found.push(`${first[0].toUpperCase()}${first.slice(1)}: ${told} in ${span(Math.max(0, each.until_s - each.since_s))}${share}.${cost}`);
  const skipped = Object.entries(each.skipped).filter(([, number]) => number > 0).map(([reason, number]) => `${reason} (${count(number)})`);
  if (skipped.length > 0) found.push(`Not looked at: ${skipped.join(", ")}.`);
  return [...found, ...each.caveats];
}

function shadeOf(ratio) {
  if (ratio <= 0) return 0;
  const at = SHADES.findIndex((bound) => ratio < bound);
  return 1 + (at < 0 ? SHADES.length : at);
}

function expertMap(each) {
  const wanted = Math.floor((Math.min(widths.get("page"), 1088) - 32 - 64) / each.n_experts);
  const wide = Math.max(each.n_experts > 160 ? 4 : 5, Math.min(24, wanted));
  const high = each.layers.length > 40 ? 8 : each.layers.length > 16 ? 12 : 18;
  const [left, top] = [44, 18];
  const box = { width: left + each.n_experts * wide + 16, height: top + each.layers.length * high + 6 };
  const cells = new Map();
  let [dead, hot] = ["", ""];
  each.layers.forEach((layer, row) => {
    const [y, unseen, busy] = [top + row * high, new Set(layer.dead), new Set(layer.hot)];
    layer.shares.forEach((share, expert) => {
      const x = left + expert * wide;
      const shade = shadeOf(share * layer.shares.length);
      if (shade > 0) cells.set(shade, `${cells.get(shade) ?? ""}M${x} ${y}h${wide - 0.5}v${high - 0.5}h${0.5 - wide}Z`);
      const size = Math.min(wide, high) / 2 - 1;
      const [cx, cy] = [x + wide / 2, y + high / 2];
      if (unseen.has(expert)) dead += `M${cx - size} ${cy - size}l${2 * size} ${2 * size}m0 ${-2 * size}l${-2 * size} ${2 * size}`;
      if (busy.has(expert)) hot += `M${cx} ${cy}h0`;
    });
  });
  const rows = Math.ceil(12 / high);
  const steps = [1, 2, 4, 8, 16, 32, 64, 128].find((step) => step * wide >= 30) ?? 128;
  const labels = each.layers.flatMap((layer, row) => row % rows > 0 ? [] :
    [v("text", { x: left - 6, y: top + row * high + high / 2 + 4, "text-anchor": "end" }, layer.layer)]);
  for (let expert = 0; expert < each.n_experts; expert += steps) labels.push(v("text", { x: left + expert * wide + wide / 2, y: top - 5, "text-anchor": "middle" }, expert));
  const mark = v("rect", { class: "heat-here", width: wide, height: high, hidden: "" });
  const name = `Load of the experts of ${each.backend}, ${each.layers.length} layers by ${each.n_experts} experts; the numbers stand in the table below. ${expertWords(each)[0]}`;
  const drawn = v("svg", { viewBox: `0 0 ${box.width} ${box.height}`, width: box.width, height: box.height, role: "img", class: "heat", tabindex: 0, "data-heat": each.backend, "aria-label": name },
    v("rect", { class: "heat-frame", x: left - 0.75, y: top - 0.75, width: each.n_experts * wide + 1, height: each.layers.length * high + 1 }),
    ...[...cells].map(([shade, path]) => v("path", { class: `shade s${shade}`, d: path })),
    v("path", { class: "heat-dead", d: dead }), v("path", { class: "heat-hot", d: hot }), ...labels, mark);
  // The page's policy lets no style attribute through; a width set by a script is none.
  drawn.style.width = `${box.width}px`;
  drawn.style.maxWidth = "none";
  const said = h("p", { class: "quiet heat-said" });
  const show = (row, expert) => {
    const [y, x] = [Math.max(0, Math.min(each.layers.length - 1, row)), Math.max(0, Math.min(each.n_experts - 1, expert))];
    experts.at.set(each.backend, [y, x]);
    for (const [key, value] of [["x", left + x * wide], ["y", top + y * high]]) mark.setAttribute(key, value);
    mark.removeAttribute("hidden");
    said.textContent = cellWords(each.layers[y], x);
  };
  const point = (event) => {
    const place = drawn.getBoundingClientRect();
    const [x, y] = [(event.clientX - place.left) * box.width / place.width - left, (event.clientY - place.top) * box.height / place.height - top];
    if (x >= 0 && y >= 0 && x < each.n_experts * wide && y < each.layers.length * high) show(Math.floor(y / high), Math.floor(x / wide));
  };
  drawn.addEventListener("pointermove", point);
  drawn.addEventListener("pointerdown", point);
  drawn.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const [y, x] = experts.at.get(each.backend) ?? [0, -1];
    show(y + step[0], x + step[1]);
  });
  const kept = experts.at.get(each.backend);
  if (kept === undefined) said.textContent = "Point at a cell, or use the arrow keys, for its numbers.";
  else show(...kept);
  return h("figure", {},
    h("h3", {}, each.backend, each.model === null || each.model === undefined ? null : h("small", { class: "quiet" }, ` ${each.model}`)),
    each.alarms.length === 0 ? null : h("ul", { class: "warnings" }, ...each.alarms.map((text) => h("li", {}, text))),
    h("p", { class: "prose heat-words" }, expertWords(each).join(" ")),
    heatLegend(),
    h("div", { class: "scroll" }, drawn), said,
    h("figcaption", {}, `Layers down, experts across, both as the ${each.source === "counted" ? "engine" : "model"} numbers them. Shade: an expert’s share of the layer’s choices over the mean.`),
    unfolded(`${each.backend}/layers`, "The numbers by layer", layersTable(each)),
    groupsOf(each, "keys", "key"), groupsOf(each, "languages", "language"));
}

function cellWords(layer, expert) {
  const share = layer.shares[expert];
  const more = layer.dead.includes(expert) ? "; nothing reached it" : layer.hot.includes(expert) ? "; hot by more than chance" : "";
  return `Layer ${layer.layer}, expert ${expert}: ${part(share)} of the choices, ${significant(share * layer.shares.length, 2)} times the mean, ${part(layer.frequencies[expert])} of the tokens${more}.`;
}

function heatLegend() {
  const box = (...inside) => v("svg", { viewBox: "0 0 14 12", "aria-hidden": "true" }, v("rect", { class: "heat-frame", x: 0.5, y: 0.5, width: 12, height: 11 }), ...inside);
  return h("ul", { class: "legend" },
    ...SHADE_WORDS.map((words, i) => h("li", {}, box(v("rect", { class: `shade s${i + 1}`, x: 0.5, y: 0.5, width: 12, height: 11 })), words)),
    h("li", {}, box(v("path", { class: "heat-dead", d: "M3 2.5l7 7m0 -7l-7 7" })), "nothing reached it"),
    h("li", {}, box(v("rect", { class: "shade s5", x: 0.5, y: 0.5, width: 12, height: 11 }), v("path", { class: "heat-hot", d: "M6.5 6h0" })), "above twice the mean by more than chance"));
}

/** A folded part that stays as its reader left it. */
function unfolded(id, title, ...inside) {
  const found = h("details", experts.opened.has(id) ? { open: "" } : {}, h("summary", {}, title), ...inside);
  found.addEventListener("toggle", () => { if (found.open) experts.opened.add(id); else experts.opened.delete(id); });
  return found;
}

function listed(numbers) {
  if (numbers.length === 0) return null;
  return numbers.slice(0, LONGEST_LIST).join(", ") + (numbers.length > LONGEST_LIST ? ", …" : "");
}

function layersTable(each) {
  const drift = each.layers.some((layer) => layer.drift !== null && layer.drift !== undefined);
  const rows = each.layers.map((layer) => h("tr", {}, h("th", { scope: "row" }, `layer ${layer.layer}`),
    cell(significant(layer.imbalance, 3), `expert ${busiest(layer)}`), cell(significant(layer.entropy, 3)),
    cell(count(layer.dead.length), listed(layer.dead)), cell(count(layer.hot.length), listed(layer.hot)),
    ...(drift ? [cell(part(layer.drift), layer.drift_by_chance === null || layer.drift_by_chance === undefined ? null : `${part(layer.drift_by_chance)} by chance`)] : [])));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Experts of ${each.backend} by layer` },
    h("table", {}, caption("Busiest: times the mean. Entropy: 1 is even."),
      head("", "busiest", "entropy", "nothing reached", "hot", ...(drift ? ["drift"] : [])), h("tbody", {}, ...rows)));
}

/** How far the requests of each key, or language, are routed apart from all others. */
function groupsOf(each, field, what) {
  if (each[field].length < 2) return null;
  const rows = each[field].map((group) => h("tr", {}, h("th", { scope: "row" }, group.name || "not told"),
    cell(count(group.requests)), cell(count(group.tokens)),
    cell(part(group.apart), group.apart_by_chance === null || group.apart_by_chance === undefined ? null : `${part(group.apart_by_chance)} by chance`)));
  return unfolded(`${each.backend}/${field}`, `By ${what}`,
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Experts of ${each.backend} by ${what}` },
      h("table", {}, caption("Apart: share of the choices that would have to go elsewhere to make it as all others are."),
        head(`<${what}`, "requests", "tokens", "apart"), h("tbody", {}, ...rows))));
}
