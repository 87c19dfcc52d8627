// Numbers and the verdict in words.

const KINDS = { dense: "dense", moe: "MoE", unknown: "architecture not known" };

function significant(value, digits) {
  if (value === 0) return "0";
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(decimals, 12));
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.0000995) return `${significant(value * 1e6, 2)} µs`;
  if (value < 0.0995) return `${significant(value * 1000, 2)} ms`;
  if (value < 0.9995) return `${(value * 1000).toFixed(0)} ms`;
  return value < 99.5 ? `${significant(value, 2)} s` : `${value.toFixed(0)} s`;
}

function dollars(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "$0";
  if (value >= 1000) return `$${Math.round(value).toLocaleString("en")}`;
  if (value >= 1) return `$${value.toFixed(2)}`;
  if (value < 1e-9) return "below $0.000000001";
  return `$${significant(value, 2)}`;
}

function percent(share) {
  if (share === null || Number.isNaN(share)) return "–";
  if (share > 0 && share < 0.01) return "below 1 %";
  // Never "100 %" of what was not all.
  return `${share < 1 ? Math.min(99, Math.round(100 * share)) : 100} %`;
}

function count(value) {
  if (value < 10000) return Math.round(value).toLocaleString("en");
  if (value < 1e6) return `${significant(value / 1e3, 3)} k`;
  return value < 1e9 ? `${significant(value / 1e6, 3)} M` : `${significant(value / 1e9, 3)} G`;
}

/** "1 request", "2 requests". */
function many(value, thing) {
  return `${count(value)} ${thing}${value === 1 ? "" : "s"}`;
}

function rate(value) {
  return value >= 99.5 ? value.toFixed(0) : significant(value, 2);
}

function times(ratio) {
  if (ratio >= 0.995 && ratio <= 1.005) return "as much";
  return ratio > 1 ? `${significant(ratio, 2)} times as much` : `${percent(ratio)} of it`;
}

function span(value) {
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 129600 ? `${significant(value / 3600, 2)} h` : `${Math.round(value / 86400)} days`;
}

/** The window the words are about: the last minute, or everything since the start while the page has seen too little. */
function judged() {
  const minute = over(60);
  if (minute.seconds >= 5) return { ...minute, when: "in the last minute" };
  return { ...sinceStart(), when: "since the gateway started" };
}

/** The headline and what stands below it. */
function verdict(window) {
  const { snapshot } = history.last;
  const total = [...window.sums.values()].reduce((sum, row) => sum + row.requests, 0);
  if (snapshot.draining) return { head: "The gateway is ending: what is under way is finished, nothing new is taken.", because: [] };
  if (total < 0.5) return { head: `No requests ${window.when}.`, because: idle(snapshot) };
  const ranked = [...window.sums.entries()].filter(([, row]) => row.requests > 0)
    .sort((one, other) => other[1].requests - one[1].requests);
  const share = (row) => percent(row.requests / total);
  const byKind = new Map();
  for (const [name, row] of ranked) byKind.set(kindOf(name), (byKind.get(kindOf(name)) ?? 0) + row.requests);
  const [[kind, most]] = [...byKind.entries()].sort((one, other) => other[1] - one[1]);
  const [[first, row]] = ranked;
  let head;
  if (row.requests / total >= 0.9) {
    const what = kind === "unknown" ? "" : kind === "moe" ? "the Mixture-of-Experts model " : "the dense model ";
    head = `Traffic goes to ${what}${first}: ${share(row)} of the requests ${window.when}.`;
  } else if (most / total >= 0.9 && kind !== "unknown") {
    const names = ranked.filter(([name]) => kindOf(name) === kind).slice(0, 3).map(([name, each]) => `${name} ${share(each)}`);
    head = `Traffic goes to ${KINDS[kind]} models: ${names.join(", ")} of the requests ${window.when}.`;
  } else {
    const names = ranked.slice(0, 3).map(([name, each]) => `${name}${kindOf(name) === "unknown" ? "" : ` (${KINDS[kindOf(name)]})`} ${share(each)}`);
    head = `Traffic is split: ${names.join(", ")} of the requests ${window.when}.`;
  }
  return { head, because: [...why(ranked.slice(0, 2).map(([name]) => name)), ...turned(), kept(window), ...money(window)] };
}

function idle(snapshot) {
  const sum = snapshot.backends.reduce((all, each) => all + each.requests, 0);
  if (sum === 0) return ["Nothing was asked since it started. Point an OpenAI client at it and the traffic shows here."];
  return [`${many(sum, "request")} since it started, ${span(snapshot.uptime_s)} ago.`];
}

/** Why requests went to each of `names`, from the decisions of the last minute that are known here. */
function why(names) {
  const since = history.last.snapshot.time_s - 60;
  const found = [];
  for (const name of names) {
    const reasons = new Map();
    let all = 0;
    for (const record of history.decisions.values()) {
      if (record.backend !== name || record.time_s < since || record.shadow_of) continue;
      all += 1;
      reasons.set(record.reason, (reasons.get(record.reason) ?? 0) + 1);
    }
    if (all === 0) continue;
    const [[reason, number]] = [...reasons.entries()].sort((one, other) => other[1] - one[1]);
    found.push(`To ${name}: ${reasonText(reason)} (${percent(number / all)} of ${count(all)} decisions looked at).`);
  }
  return found;
}

function reasonText(reason) {
  return KNOWN.reasons[reason] ?? reason;
}

/** When the other architecture took over, and at what load: the answer's flip as it was seen to happen. */
function turned() {
  const lead = [];
  for (const bin of bins(15)) {
    const dense = together(bin.sums, (name) => kindOf(name) === "dense")?.requests ?? 0;
    const moe = together(bin.sums, (name) => kindOf(name) === "moe")?.requests ?? 0;
    if (bin.seconds < 5 || dense + moe < 3 || Math.max(dense, moe) < 0.6 * (dense + moe)) continue;
    lead.push({ kind: dense > moe ? "dense" : "moe", at: bin.start + bin.width, rate: (dense + moe) / bin.seconds });
  }
  for (let i = lead.length - 1; i > 0; i -= 1) {
    if (lead[i].kind === lead[i - 1].kind) continue;
    const before = lead[i - 1].rate;
    const now = lead[i].rate;
    const how = now > 1.1 * before ? "rose" : now < 0.9 * before ? "fell" : null;
    const load = how === null ? `at ${rate(now)} requests/s` : `when traffic ${how} from ${rate(before)} to ${rate(now)} requests/s`;
    const ago = Math.max(0, history.last.at - lead[i].at + 15);
    return [`${lead[i].kind === "moe" ? "Mixture-of-Experts" : "Dense"} took over about ${span(ago)} ago, ${load}.`];
  }
  return [];
}

function kept(window) {
  const all = together(window.sums);
  if (all === null || all.judged < 0.5) return `No request asked for a latency ${window.when}.`;
  return `${percent(all.good / all.judged)} of the requests that asked for a latency got it ${window.when}.`;
}

function money(window) {
  const all = together(window.sums);
  if (all === null || window.seconds <= 0 || (all.usd === 0 && all.usd_elsewhere === 0)) return [];
  const hour = 3600 / window.seconds;
  const here = `It costs ${dollars(all.usd * hour)} an hour at the traffic ${window.when}`;
  if (all.usd_elsewhere <= 0) return [`${here}.`];
  if (all.usd <= 0) return [`${here}; all of it at the other architecture would cost ${dollars(all.usd_elsewhere * hour)}.`];
  return [`${here}; all of it at the other architecture would cost ${dollars(all.usd_elsewhere * hour)}, ${times(all.usd_elsewhere / all.usd)}.`];
}

/** What the operator should look at, the gateway's own warnings first. */
function warnings(snapshot) {
  const found = [...snapshot.warnings];
  for (const each of snapshot.backends) {
    if (each.breaker === "open") found.push(`${each.name} fails, so it gets no requests but a probe now and then.`);
    else if (each.breaker === "half_open") found.push(`${each.name} failed and is being tried again.`);
    if (each.state === "away") found.push(`${each.name} does not answer when asked for its numbers.`);
    if (each.state === "failed") found.push(`${each.name} could not be started.`);
    if (each.in_flight >= each.limit) found.push(`${each.name} has as many requests as its limit allows (${count(each.limit)}).`);
  }
  if (snapshot.log_dropped > 0) found.push(`${many(snapshot.log_dropped, "line")} of the decision log ${snapshot.log_dropped === 1 ? "was" : "were"} not written.`);
  return found;
}
