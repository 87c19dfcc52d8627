// Tables: backends, calibration, experiments, usage, decisions.

function cell(value, small = null, bad = false) {
  return h("td", { class: bad ? "n bad" : "n" }, value, small === null ? null : h("small", {}, small));
}

/** Column heads: the first and those that begin with "<" stand over words, the others over numbers. */
function head(...names) {
  return h("thead", {}, h("tr", {}, ...names.map((name, i) =>
    h("th", { scope: "col", class: i === 0 || name.startsWith("<") ? null : "n" }, name.replace(/^</, "")))));
}

function caption(text) {
  return h("caption", {}, h("span", {}, text));
}

/** A table's content, replaced only when it changed: a reader may be selecting in it. */
function table(id, ...parts) {
  const fresh = h("table", {}, ...parts);
  const old = document.getElementById(id);
  if (old.innerHTML !== fresh.innerHTML) old.replaceChildren(...fresh.childNodes);
}

const STATES = { ready: "ready", loading: "loading", unloaded: "not loaded", draining: "ending", failed: "failed", away: "away" };
const BREAKERS = { half_open: "being tried again", open: "held off" };

function drawBackends(snapshot) {
  const window = judged();
  const rows = snapshot.backends.map((each) => {
    const row = window.sums.get(each.name);
    const bounds = snapshot.time_bounds_s;
    const ttft = row === undefined ? null : [0.5, 0.95].map((share) => quantile(row.ttft_buckets, bounds, share));
    const tpot = row === undefined ? null : [0.5, 0.95].map((share) => quantile(row.tpot_buckets, bounds.map((bound) => bound / 10), share));
    const progress = each.load_progress === null || each.load_progress === undefined ? "" : ` ${percent(each.load_progress)}`;
    const good = row === undefined || row.judged < 0.5 ? null : row.good / row.judged;
    const failed = row === undefined ? 0 : row.errors + row.cut;
    return h("tr", {},
      h("th", { scope: "row" }, each.name, h("small", {}, [KINDS[each.kind] ?? each.kind, each.place].join(", "))),
      h("td", { class: each.breaker === "open" || each.state === "away" || each.state === "failed" ? "bad" : null },
        BREAKERS[each.breaker] ?? `${STATES[each.state] ?? each.state}${progress}`, each.breaker === "closed" ? null : h("small", {}, "it failed")),
      cell(`${count(each.in_flight)} of ${count(each.limit)}`, each.queued > 0 ? `${count(each.queued)} waiting here` : null, each.in_flight >= each.limit),
      engineCell(each),
      cell(rate(row === undefined || window.seconds <= 0 ? 0 : row.requests / window.seconds), `${count(each.requests)} in all`),
      cell(ttft === null ? "–" : seconds(ttft[0]), ttft === null || ttft[1] === null ? null : `95th: ${seconds(ttft[1])}`),
      cell(tpot === null ? "–" : seconds(tpot[0]), tpot === null || tpot[1] === null ? null : `95th: ${seconds(tpot[1])}`),
      cell(good === null ? "–" : percent(good), row === undefined || row.judged < 0.5 ? null : `of ${count(row.judged)}`),
      cell(count(failed), row !== undefined && row.retried >= 0.5 ? `${count(row.retried)} moved on` : null, failed >= 0.5),
      cell(row === undefined || window.seconds <= 0 ? "–" : dollars((row.usd * 3600) / window.seconds),
        each.usd_per_hour === null || each.usd_per_hour === undefined ? null : `idle: ${dollars(each.usd_per_hour)}`));
  });
  table("backends", caption(`Rates, percentiles and failures ${window.when}. First token and time a token: median.`),
    head("backend", "<state", "in flight", "engine says", "requests/s", "first token", "a token", "in time", "failed", "$/hour"),
    h("tbody", {}, ...rows));
}

function engineCell(each) {
  if (each.engine_running === null || each.engine_running === undefined) return cell("–");
  const cache = each.kv_share === null || each.kv_share === undefined || each.kv_share <= 0 ? null : `cache ${percent(each.kv_share)} full`;
  return cell(`${count(each.engine_running)} + ${count(each.engine_waiting ?? 0)} in line`, cache);
}

function drawRatios(snapshot) {
  const { sums } = over(KEEP_S);
  const of = (row, name) => row === undefined ? null : [0.05, 0.5, 0.95].map((share) => quantile(row[name], snapshot.ratio_bounds, share));
  const shown = (value, factor) => value === null || value[1] === null
    ? cell("–", `corrected ×${significant(factor, 2)}`)
    : cell(significant(value[1], 2), `90 %: ${significant(value[0], 2)} to ${significant(value[2], 2)}; corrected ×${significant(factor, 2)}`);
  table("ratios", caption("Actual over predicted in the last ten minutes: median, where nine of ten lie, and the factor that was learned and is in the prediction already."),
    head("backend", "first token", "a token"),
    h("tbody", {}, ...snapshot.backends.map((each) => h("tr", {}, h("th", { scope: "row" }, each.name),
      shown(of(sums.get(each.name), "ttft_ratio_buckets"), each.ttft_factor), shown(of(sums.get(each.name), "tpot_ratio_buckets"), each.tpot_factor)))));
}

function drawUsage(snapshot) {
  // A row without a name is everybody's where no keys are asked for.
  const used = (rows) => rows.filter((row) => row.requests > 0 && row.name !== "");
  const [models, keys] = [used(snapshot.models), used(snapshot.keys)];
  document.getElementById("usage-section").hidden = models.length + keys.length === 0;
  for (const [id, what, rows] of [["models", "model", models], ["keys", "key", keys]]) {
    document.getElementById(id).parentElement.hidden = rows.length === 0;
    const more = rows.length > 30 ? ` The ${30} busiest of ${rows.length}.` : "";
    table(id, caption(`By ${what}, since the gateway started.${more}`), head(what, "requests", "tokens", "cost"),
      h("tbody", {}, ...rows.slice(0, 30).map((row) => h("tr", {}, h("th", { scope: "row" }, row.name),
        cell(count(row.requests)), cell(count(row.tokens)), cell(dollars(row.usd))))));
  }
}

const METRICS = {
  ttft: ["first token", seconds], tpot: ["time a token", seconds], e2e: ["whole request", seconds], usd: ["cost", dollars],
  output_tokens: ["tokens written", (value) => significant(value, 3)], errors: ["errors", exactly], refusals: ["refusals", exactly],
  distinct_answers: ["distinct answers", exactly], length_spread: ["spread of lengths", (value) => significant(value, 3)],
};
function exactly(share) {
  return `${significant(100 * share, 2)} %`;
}

const EXPERIMENTS = { running: "is running", stopped: "has stopped", stepped_back: "was taken back", done: "is done" };

function drawExperiments(snapshot) {
  document.getElementById("experiments-section").hidden = snapshot.experiments.length === 0;
  const fresh = snapshot.experiments.map((each) => {
    const winner = each.winner === null ? "" : ` ${each.winner} is better.`;
    const rows = each.differences.map((difference) => experimentRow(each, difference));
    return h("div", {}, h("h3", {}, each.name),
      h("p", {}, `${each.kind === "ab" ? "The comparison" : each.kind === "canary" ? "The canary" : "The shadow"} ${EXPERIMENTS[each.state] ?? each.state}; ${percent(each.share)} of ${each.model} goes to the treatment.${winner} ${each.reason}`.trim()),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": each.name }, h("table", {},
        caption("Means by arm, and treatment over control with an interval that holds at every look. The line marks no difference; an interval that crosses it shows none."),
        head("metric", ...each.arms.map((arm) => `${arm.name}: ${arm.backend} (${count(arm.requests)})`), "treatment over control", "<"),
        h("tbody", {}, ...rows))));
  });
  const place = document.getElementById("experiments");
  const holder = h("div", {}, ...fresh);
  if (holder.innerHTML !== place.innerHTML) place.replaceChildren(...holder.childNodes);
}

function experimentRow(experiment, difference) {
  const [name, text] = METRICS[difference.metric] ?? [difference.metric, (value) => significant(value, 3)];
  const means = experiment.arms.map((arm) => cell(arm.means[difference.metric] === undefined ? "–" : text(arm.means[difference.metric])));
  const some = (value) => value !== null && value !== undefined;
  if (some(difference.ratio)) {
    const [least, most] = [some(difference.low) && difference.low > 0, some(difference.high)];
    const within = least && most;
    const band = within ? `${significant(difference.low, 3)} to ${significant(difference.high, 3)}`
      : least ? `at least ${significant(difference.low, 3)}` : most ? `at most ${significant(difference.high, 3)}` : "no interval yet";
    return h("tr", {}, h("th", { scope: "row" }, name), ...means, cell(significant(difference.ratio, 3), band),
      h("td", {}, within ? interval(Math.log(difference.low), Math.log(difference.ratio), Math.log(difference.high), Math.LN2) : ""));
  }
  const { difference: middle, difference_low: low, difference_high: high } = difference;
  const points = (value) => `${value >= 0 ? "+" : "−"}${significant(Math.abs(100 * value), 2)}`;
  if (!some(middle)) return h("tr", {}, h("th", { scope: "row" }, name), ...means, cell("–", "no interval yet"), h("td", {}));
  return h("tr", {}, h("th", { scope: "row" }, name), ...means,
    cell(`${points(middle)} points`, some(low) && some(high) ? `${points(low)} to ${points(high)}` : "no interval yet"),
    h("td", {}, some(low) && some(high) ? interval(low, middle, high, 0.1) : ""));
}

/** An interval on a line whose middle is "no difference"; what is past `reach` ends at the edge. */
function interval(low, middle, high, reach) {
  const place = (value) => 60 + 55 * Math.max(-1, Math.min(1, value / reach));
  return v("svg", { viewBox: "0 0 120 16", width: 120, height: 16, "aria-hidden": "true" },
    v("line", { class: "base", x1: 60, x2: 60, y1: 0, y2: 16 }),
    v("line", { class: `line ${low > 0 || high < 0 ? "ci" : "c0"}`, x1: place(low), x2: place(high), y1: 8, y2: 8 }),
    mark("dense", place(middle), 8, 3, low > 0 || high < 0 ? "ci" : "c0"));
}
