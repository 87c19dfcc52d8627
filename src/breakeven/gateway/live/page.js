// Ask each second, draw what came. A gateway that is away is asked again, and what was seen stays on the page.

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const view = { paused: false, missed: 0, busy: false };

function clock() {
  return performance.now() / 1000;
}

async function look() {
  if (view.busy) return;
  view.busy = true;
  try {
    const answer = await fetch("/admin/state", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.status === 401) return banner("The gateway asks for its secret again. Reload this page to log in.");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    remember(await answer.json(), clock());
    view.missed = 0;
    banner("");
    if (!view.paused && !document.hidden) draw();
    await lookAtExperts();
  } catch (problem) {
    if (!(problem instanceof TypeError || problem instanceof DOMException || problem.message.startsWith("status"))) console.error(problem);
    view.missed += 1;
    const since = history.last === null ? "" : ` Last seen ${span(clock() - history.last.at)} ago; below is how it was then.`;
    banner(`The gateway cannot be reached, trying again.${since}`);
  } finally {
    view.busy = false;
  }
}

function banner(text) {
  document.getElementById("banner").hidden = text === "";
  say("banner", text);
}

function draw() {
  const { snapshot } = history.last;
  measure();
  const window = judged();
  const words = verdict(window);
  say("verdict", words.head);
  document.title = `${words.head} – Breakeven`;
  sayAll("because", words.because);
  const alarms = warnings(snapshot);
  document.getElementById("warnings").hidden = alarms.length === 0;
  sayAll("warnings", alarms);
  say("now", [`Breakeven ${snapshot.version}`, `${snapshot.workers} ${snapshot.workers === 1 ? "worker" : "workers"}`, `up for ${span(snapshot.uptime_s)}`,
    snapshot.generation > 1 ? `configuration ${snapshot.generation}` : ""].filter(Boolean).join(" · "));
  const all = bins(BIN_S);
  drawLegend(all);
  drawTraffic(all);
  const asked = (name) => snapshot.policies.map((policy) => policy[name]).filter((value) => value > 0);
  say("kept", kept(window));
  drawLatency("ttft", "ttft_buckets", snapshot.time_bounds_s, asked("ttft_s"), "First token");
  drawLatency("tpot", "tpot_buckets", snapshot.time_bounds_s.map((bound) => bound / 10), asked("tpot_s"), "Time a token");
  say("money", spent(snapshot, window));
  drawCost();
  drawBackends(snapshot);
  drawPredicted("predicted-ttft", "predicted_ttft_s", "ttft_s", "First token");
  drawPredicted("predicted-tpot", "predicted_tpot_s", "tpot_s", "Time a token");
  drawRatios(snapshot);
  drawExperts(snapshot);
  drawExperiments(snapshot);
  drawUsage(snapshot);
  drawDecisions(snapshot);
}

function spent(snapshot, window) {
  const here = snapshot.backends.reduce((sum, each) => sum + each.usd, 0);
  const there = snapshot.backends.reduce((sum, each) => sum + each.usd_elsewhere, 0);
  const standing = snapshot.backends.reduce((sum, each) => sum + (each.usd_per_hour ?? 0), 0);
  const found = money(window);
  if (here > 0 || there > 0) found.push(`Since it started: ${dollars(here)}${there > 0 ? `, and ${dollars(there)} had everything gone to the other architecture` : ""}.`);
  if (standing > 0) found.push(`The machines cost ${dollars(standing)} an hour whether they work or not.`);
  return found.join(" ") || "No backend has a price.";
}

document.getElementById("pause").addEventListener("click", (event) => {
  view.paused = !view.paused;
  event.target.setAttribute("aria-pressed", String(view.paused));
  event.target.textContent = view.paused ? "Go on" : "Pause";
  if (!view.paused && history.last !== null) draw();
});
for (const [target, event] of [[window, "resize"], [document, "visibilitychange"]]) {
  target.addEventListener(event, () => { if (history.last !== null && !view.paused && !document.hidden) draw(); });
}
look();
setInterval(look, EVERY_MS);
