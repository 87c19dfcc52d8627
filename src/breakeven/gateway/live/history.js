// Ten minutes of what changed from one look to the next. The gateway counts since it started; here are differences.

const KEEP_S = 600;
const MOST_DECISIONS = 500;
const COUNTS = [
  "requests", "ok", "errors", "cut", "cancelled", "retried", "hedged", "explored", "shed",
  "prompt_tokens", "output_tokens", "usd", "usd_elsewhere", "good", "judged",
];
const BUCKETS = ["ttft_buckets", "tpot_buckets", "ttft_ratio_buckets", "tpot_ratio_buckets"];

const history = { steps: [], last: null, decisions: new Map(), colours: new Map() };

/** Take a snapshot in, seen at `at` seconds of the page's clock. */
function remember(snapshot, at) {
  const before = history.last;
  // A gateway that was started again counts from 0: what it has now happened since.
  const restarted = before !== null && snapshot.uptime_s + 1 < before.snapshot.uptime_s;
  if (before !== null && at > before.at) {
    const old = new Map(before.snapshot.backends.map((each) => [each.name, each]));
    const rows = new Map();
    for (const each of snapshot.backends) {
      const row = difference(restarted ? undefined : old.get(each.name), each);
      if (row !== null) rows.set(each.name, row);
    }
    history.steps.push({ from: before.at, to: at, rows });
    while (history.steps.length > 0 && history.steps[0].to < at - KEEP_S) history.steps.shift();
  }
  history.last = { snapshot, at };
  for (const record of [...snapshot.recent].reverse()) history.decisions.set(record.id, record);
  for (const id of history.decisions.keys()) {
    if (history.decisions.size <= MOST_DECISIONS) break;
    history.decisions.delete(id);
  }
}

/** What was counted between two looks at one backend; null when nothing was. */
function difference(before, now) {
  const row = { in_flight: now.in_flight };
  const fresh = before === undefined || now.requests < before.requests;
  let any = false;
  for (const name of COUNTS) {
    row[name] = Math.max(0, now[name] - (fresh ? 0 : before[name]));
    any = any || row[name] > 0;
  }
  for (const name of BUCKETS) {
    row[name] = now[name].map((count, i) => Math.max(0, count - (fresh ? 0 : before[name][i])));
    any = any || row[name].some((count) => count > 0);
  }
  return any ? row : null;
}

/** Sums by backend over the last `seconds`; `seconds` in the answer is how long was really looked at. */
function over(seconds) {
  const end = history.last === null ? 0 : history.last.at;
  const sums = new Map();
  let looked = 0;
  for (const step of history.steps) {
    if (step.to <= end - seconds) continue;
    looked += step.to - step.from;
    for (const [name, row] of step.rows) addTo(sums, name, row);
  }
  return { seconds: looked, sums };
}

/** Everything since the gateway started, in the same shape. */
function sinceStart() {
  const { snapshot } = history.last;
  const sums = new Map();
  for (const each of snapshot.backends) if (each.requests > 0) addTo(sums, each.name, each);
  return { seconds: snapshot.uptime_s, sums };
}

function addTo(sums, name, row) {
  let sum = sums.get(name);
  if (sum === undefined) {
    sum = {};
    for (const each of COUNTS) sum[each] = 0;
    for (const each of BUCKETS) sum[each] = row[each].map(() => 0);
    sums.set(name, sum);
  }
  for (const each of COUNTS) sum[each] += row[each];
  for (const each of BUCKETS) row[each].forEach((count, i) => { sum[each][i] += count; });
}

/** Times of `width` seconds up to now, oldest first, each with its sums and the seconds that were looked at: less than
 * `width` in the one that is not over yet. */
function bins(width) {
  const end = Math.ceil(history.last.at / width) * width;
  const found = [];
  for (let start = end - KEEP_S; start < end; start += width) found.push({ start, width, seconds: 0, sums: new Map() });
  for (const step of history.steps) {
    const span = step.to - step.from;
    // A step over a bin's edge, or a long one after a pause, is spread evenly over the time it took.
    for (const bin of found) {
      const shared = Math.min(step.to, bin.start + width) - Math.max(step.from, bin.start);
      if (shared <= 0) continue;
      bin.seconds += shared;
      for (const [name, row] of step.rows) addPart(bin.sums, name, row, shared / span);
    }
  }
  return found;
}

function addPart(sums, name, row, part) {
  const scaled = {};
  for (const each of COUNTS) scaled[each] = row[each] * part;
  for (const each of BUCKETS) scaled[each] = row[each].map((count) => count * part);
  addTo(sums, name, scaled);
}

/** The value below which `share` of the counted lies, straight within a bucket; null without any. `bounds[i]` ends
 * bucket i; what is above all bounds is said to be the highest bound. */
function quantile(buckets, bounds, share) {
  const total = buckets.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return null;
  let below = 0;
  for (let i = 0; i < bounds.length; i += 1) {
    if (below + buckets[i] >= share * total && buckets[i] > 0) {
      const low = i === 0 ? 0 : bounds[i - 1];
      return low + (bounds[i] - low) * Math.max(0, share * total - below) / buckets[i];
    }
    below += buckets[i];
  }
  return bounds[bounds.length - 1];
}

/** One sum over all backends, or over those `wanted` lets through; null when there is none. */
function together(sums, wanted = () => true) {
  const all = new Map();
  for (const [name, row] of sums) if (wanted(name)) addTo(all, "", row);
  return all.get("") ?? null;
}

const COOL = ["c1", "c3", "c6"];
const WARM = ["c2", "c5", "c4"];

/** A backend's colour: cool for dense, warm for MoE, given at its first request and kept; grey when there are no more. */
function colour(name) {
  const known = history.colours.get(name);
  if (known !== undefined) return known;
  const kind = kindOf(name);
  const taken = new Set(history.colours.values());
  const order = kind === "moe" ? WARM : kind === "dense" ? COOL : [...COOL, ...WARM];
  const free = order.find((each) => !taken.has(each)) ?? "c0";
  history.colours.set(name, free);
  return free;
}

function kindOf(name) {
  const found = history.last.snapshot.backends.find((each) => each.name === name);
  return found === undefined ? "unknown" : found.kind;
}
