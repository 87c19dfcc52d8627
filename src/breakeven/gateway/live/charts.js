// The charts, each drawn anew from the history.

const BIN_S = 10;
const MOST_SERIES = 6;

/** Backends that had requests in the history, most first; more than six are summed up as "others". */
function leaders(all) {
  const totals = new Map();
  for (const bin of all) for (const [name, row] of bin.sums) totals.set(name, (totals.get(name) ?? 0) + row.requests);
  const ranked = [...totals.entries()].filter(([, number]) => number > 0).sort((one, other) => other[1] - one[1]).map(([name]) => name);
  return { shown: ranked.slice(0, MOST_SERIES), rest: ranked.slice(MOST_SERIES) };
}

function swatch(kind, tone, line) {
  const dash = kind === "moe" ? " moe" : "";
  return v("svg", { viewBox: "0 0 14 12", "aria-hidden": "true" },
    line ? v("path", { class: `line${dash} ${tone}`, d: "M0 6H14" }) : mark(kind, 7, 6, 5, tone));
}

function drawLegend(all) {
  const { shown, rest } = leaders(all);
  const items = shown.map((name) => h("li", {}, swatch(kindOf(name), colour(name)), `${name} · ${KINDS[kindOf(name)]}`));
  if (rest.length > 0) items.push(h("li", {}, swatch("unknown", "c0"), `${rest.length} others`));
  put("legend", ...items);
}

function drawTraffic(all) {
  const box = frame("traffic", 210);
  const { shown, rest } = leaders(all);
  // The order of the stack must not jump when one overtakes another.
  const order = history.last.snapshot.backends.map((each) => each.name).filter((name) => shown.includes(name));
  const series = order.map((name) => ({ tone: colour(name), kind: kindOf(name), names: [name] }));
  if (rest.length > 0) series.push({ tone: "c0", kind: "unknown", names: rest });
  const values = series.map((each) => all.map((bin) =>
    bin.seconds < BIN_S / 4 ? null : each.names.reduce((sum, name) => sum + (bin.sums.get(name)?.requests ?? 0), 0) / bin.seconds));
  const most = Math.max(0, ...all.map((_, i) => values.reduce((sum, each) => sum + (each[i] ?? 0), 0)));
  const steps = ticks(most);
  const y = scale(0, steps[steps.length - 1], box.bottom, box.top);
  const x = scale(-KEEP_S, 0, box.left, box.right);
  const end = all[all.length - 1].start + BIN_S;
  const base = all.map(() => 0);
  const shapes = [];
  series.forEach((each, s) => {
    let path = "";
    all.forEach((bin, i) => {
      const value = values[s][i];
      if (!value) return;
      const [left, right] = [x(bin.start - end), x(bin.start + BIN_S - end)];
      path += `M${left.toFixed(1)} ${y(base[i]).toFixed(1)}V${y(base[i] + value).toFixed(1)}H${right.toFixed(1)}V${y(base[i]).toFixed(1)}Z`;
      base[i] += value;
    });
    if (path === "") return;
    shapes.push(v("path", { class: `bar ${each.tone}`, d: path }));
    if (each.kind === "moe") shapes.push(v("path", { fill: "url(#hatch-traffic)", d: path }));
  });
  const parts = shown.map((name) => `${name} ${rate(over(60).sums.get(name)?.requests / Math.max(1, over(60).seconds) || 0)}`);
  const label = `Requests a second by backend, last minute: ${parts.join(", ") || "none"}`;
  put("traffic", picture(box, label, v("defs", {}, hatching("hatch-traffic")), acrossAxis(box, steps, y, (value) => rate(value)), ...shapes, timeAxis(box, x)));
}

/** p95 by backend over time, with what the policies ask for. */
function drawLatency(id, buckets, bounds, asked, what) {
  const wide = bins(30);
  const box = frame(id, 200, 54);
  const { shown } = leaders(wide);
  const end = wide[wide.length - 1].start + 30;
  const lines = shown.map((name) => ({
    name,
    points: wide.map((bin) => {
      const row = bin.sums.get(name);
      const value = row === undefined || row[buckets].reduce((sum, each) => sum + each, 0) < 0.5 ? null : quantile(row[buckets], bounds, 0.95);
      return value === null ? null : [bin.start + 15 - end, value];
    }),
  })).filter((line) => line.points.some((point) => point !== null));
  const all = [...lines.flatMap((line) => line.points.filter((point) => point !== null).map(([, value]) => value)), ...asked];
  if (lines.length === 0) return put(id, h("p", { class: "missing" }, "Nothing was timed in the last ten minutes."));
  const low = roundDown(Math.min(...all) / 1.2);
  const high = roundUp(Math.max(...all) * 1.2);
  const y = logScale(low, high, box.bottom, box.top);
  const x = scale(-KEEP_S, 0, box.left, box.right);
  const drawn = lines.flatMap((line) => {
    let path = "";
    let open = false;
    const dots = [];
    line.points.forEach((point, i) => {
      if (point === null) { open = false; return; }
      path += `${open ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`;
      open = true;
      // A time alone between two gaps would draw no line.
      if (!line.points[i - 1] && !line.points[i + 1]) dots.push(mark(kindOf(line.name), x(point[0]), y(point[1]), 2.5, colour(line.name)));
    });
    return [v("path", { class: `line ${kindOf(line.name)} ${colour(line.name)}`, d: path }), ...dots];
  });
  const rules = [...new Set(asked)].slice(0, 3).flatMap((value) => [
    v("line", { class: "slo", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
    v("text", { class: "slo-text", x: box.right, y: y(value) - 4, "text-anchor": "end" }, `asked: ${seconds(value)}`),
  ]);
  const last = lines.map((line) => `${line.name} ${seconds(line.points.filter((point) => point !== null).pop()[1])}`);
  return put(id, picture(box, `${what}, 95th percentile, latest: ${last.join(", ")}`, acrossAxis(box, logTicks(low, high), y, seconds), timeAxis(box, x), ...drawn, ...rules));
}

function drawCost() {
  const wide = bins(30).map((bin) => ({ ...bin, all: together(bin.sums) }));
  const end = wide[wide.length - 1].start + 30;
  const hourly = (name) => wide.map((bin) => bin.seconds < 7 ? null : [bin.start + 15 - end, 3600 * (bin.all?.[name] ?? 0) / bin.seconds]);
  const [here, there] = [hourly("usd"), hourly("usd_elsewhere")];
  const most = Math.max(0, ...[...here, ...there].filter((point) => point !== null).map(([, value]) => value));
  if (!(most > 0)) {
    put("cost-legend");
    return put("cost", h("p", { class: "missing" }, "Nothing had a cost in the last ten minutes. Prices stand in the gateway file."));
  }
  put("cost-legend", h("li", {}, swatch("", "ci", true), "as it was routed"), h("li", {}, swatch("moe", "c0", true), "all to the other architecture"));
  const box = frame("cost", 170, 62);
  const steps = ticks(most, 3);
  const y = scale(0, steps[steps.length - 1], box.bottom, box.top);
  const x = scale(-KEEP_S, 0, box.left, box.right);
  const line = (points, tone) => {
    let [path, open] = ["", false];
    for (const point of points) {
      if (point !== null) path += `${open ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`;
      open = point !== null;
    }
    return v("path", { class: `line ${tone}`, d: path });
  };
  const now = (points) => dollars(points.filter((point) => point !== null).pop()?.[1] ?? 0);
  const label = `Dollars an hour: ${now(here)} as routed, ${now(there)} at the other architecture`;
  return put("cost", picture(box, label, acrossAxis(box, steps, y, dollars), timeAxis(box, x), line(there, "moe c0"), line(here, "ci")));
}

function drawPredicted(id, predicted, actual, what) {
  const since = history.last.snapshot.time_s - KEEP_S;
  const points = [...history.decisions.values()].filter((record) => record[predicted] > 0 && record[actual] > 0 && record.time_s >= since);
  if (points.length === 0) return put(id, h("p", { class: "missing" }, "No request with a prediction has ended yet."));
  const box = frame(id, 250, 54);
  const all = points.flatMap((record) => [record[predicted], record[actual]]);
  const [low, high] = [roundDown(Math.min(...all) / 1.1), roundUp(Math.max(...all) * 1.1)];
  const x = logScale(low, high, box.left, box.right);
  const y = logScale(low, high, box.bottom - 14, box.top);
  const steps = logTicks(low, high, box.width < 420 ? 6 : 7);
  const across = steps.map((value) => v("text", { x: x(value), y: box.bottom + 2, "text-anchor": x(value) > box.right - 16 ? "end" : "middle" }, round(seconds(value))));
  const places = new Map();
  for (const record of points) {
    if (!places.has(record.backend)) places.set(record.backend, []);
    places.get(record.backend).push([x(record[predicted]), y(record[actual])]);
  }
  const dots = [...places.entries()].map(([name, some]) => marks(kindOf(name), some, 2.8, colour(name)));
  const near = points.filter((record) => Math.abs(Math.log(record[actual] / record[predicted])) < Math.log(1.25)).length;
  const label = `${what}: ${points.length} requests, ${percent(near / points.length)} within a factor of 1.25 of the prediction`;
  return put(id, picture(box, label, acrossAxis(box, steps, y, seconds), ...across,
    v("line", { class: "slo", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }), ...dots,
    v("text", { x: box.right, y: box.bottom + 17, "text-anchor": "end" }, "predicted →"),
    v("text", { x: box.left + 5, y: box.top + 14 }, "↑ actual")));
}
