// Recent decisions: one line each, opened for what every backend was predicted to give. Filtered without asking again.

const MOST_SHOWN = 50;
const opened = new Set();

function isLate(record) {
  return (record.asked_ttft_s > 0 && record.ttft_s > record.asked_ttft_s) || (record.asked_tpot_s > 0 && record.tpot_s > record.asked_tpot_s);
}

function isFailed(record) {
  return record.status >= 500 || record.status === 429 || Boolean(record.error) || record.finish === "cut";
}

function outcomeText(record) {
  if (record.status === 499) return "the client left";
  if (record.finish === "cut") return "cut";
  if (record.status >= 400) return `status ${record.status}`;
  return isLate(record) ? "late" : !record.status ? "under way" : "answered";
}

function drawDecisions(snapshot) {
  const select = document.getElementById("by-backend");
  const names = snapshot.backends.map((each) => each.name);
  if ([...select.options].slice(1).map((option) => option.value).join("\n") !== names.join("\n")) {
    const chosen = select.value;
    select.replaceChildren(h("option", { value: "" }, "all"), ...names.map((name) => h("option", { value: name }, name)));
    select.value = names.includes(chosen) ? chosen : "";
  }
  const wanted = document.getElementById("filter").value.trim().toLowerCase();
  const [backend, outcome] = [select.value, document.getElementById("by-outcome").value];
  const found = [...history.decisions.values()].reverse().sort((one, other) => other.time_s - one.time_s).filter((record) => {
    if (backend && record.backend !== backend) return false;
    if (outcome === "late" && !isLate(record)) return false;
    if (outcome === "failed" && !isFailed(record)) return false;
    if (outcome === "moved" && (record.attempts ?? []).length < 2) return false;
    const text = [record.id, record.model, record.backend, record.key, record.policy, reasonText(record.reason), record.error, record.experiment, record.status];
    return !wanted || text.join(" ").toLowerCase().includes(wanted);
  });
  const all = history.decisions.size;
  say("shown", (found.length === all ? `${count(all)} kept in this page` : `${count(found.length)} of ${count(all)}`) + (found.length > MOST_SHOWN ? `, the newest ${MOST_SHOWN} shown` : ""));
  // The button that had the focus is drawn anew; a keyboard must not lose its place.
  const focus = document.activeElement?.dataset?.id;
  table("decisions", caption("Newest first. Select a time to see what every backend was predicted to give."),
    head("when", "<asked for", "<went to", "<because", "first token", "a token", "cost", "<outcome"),
    h("tbody", {}, ...found.slice(0, MOST_SHOWN).flatMap(decisionRows)));
  if (focus) document.querySelector(`#decisions button[data-id="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

function decisionRows(record) {
  const open = opened.has(record.id);
  const when = new Date(record.time_s * 1000).toLocaleTimeString("en-GB");
  const row = h("tr", {},
    h("th", { scope: "row" }, h("button", { type: "button", class: "plain", "data-id": record.id, "aria-expanded": open }, when)),
    h("td", { class: "name" }, record.model, record.key ? h("small", {}, `key ${record.key}`) : null),
    h("td", { class: "name" }, record.backend || "nobody", (record.attempts ?? []).length > 1 ? h("small", {}, `after ${record.attempts.length - 1} other`) : null),
    h("td", { class: "long" }, reasonText(record.reason), record.explored ? h("small", {}, "to learn") : null),
    actualCell(record.ttft_s, record.predicted_ttft_s, record.asked_ttft_s),
    actualCell(record.tpot_s, record.predicted_tpot_s, record.asked_tpot_s),
    cell(dollars(record.usd), record.predicted_usd === null || record.predicted_usd === undefined ? null : `predicted ${dollars(record.predicted_usd)}`),
    h("td", { class: isFailed(record) || isLate(record) ? "bad" : null }, outcomeText(record)));
  return open ? [row, h("tr", { class: "more" }, h("td", { colspan: 8 }, details(record)))] : [row];
}

function actualCell(actual, predicted, asked) {
  const some = (value) => value !== null && value !== undefined;
  return cell(seconds(actual), some(predicted) ? `predicted ${seconds(predicted)}` : null, some(actual) && some(asked) && actual > asked);
}

/** Scores come as lists: backend, ttft, tpot, usd, headroom, running, why not. */
function details(record) {
  const scores = (record.scores ?? []).map(([name, ttft, tpot, usd, headroom, running, not]) => h("tr", {},
    h("th", { scope: "row" }, name), cell(seconds(ttft)), cell(seconds(tpot)), cell(dollars(usd)),
    cell(headroom === null || headroom > 1e6 ? "–" : significant(headroom, 2)), cell(count(running)), h("td", {}, not || (name === record.backend ? "chosen" : "possible"))));
  const asked = [record.asked_ttft_s > 0 ? `first token within ${seconds(record.asked_ttft_s)}` : "", record.asked_tpot_s > 0 ? `${seconds(record.asked_tpot_s)} a token` : "", record.asked_usd > 0 ? `at most ${dollars(record.asked_usd)}` : ""].filter(Boolean).join(", ");
  const tried = (record.attempts ?? []).map((each) => `${each.backend}: ${each.outcome.replaceAll("_", " ")} after ${seconds(each.seconds)}${each.hedge ? " (hedge)" : ""}`).join("; ");
  return h("div", {},
    h("p", { class: "byline" }, h("span", {}, h("code", {}, record.id)), h("span", {}, `policy ${record.policy}`), h("span", {}, asked ? `asked for: ${asked}` : "asked for no latency"),
      h("span", {}, `${count(record.prompt_tokens ?? record.predicted_prompt_tokens ?? 0)} tokens in, ${count(record.output_tokens ?? 0)} out`), tried ? h("span", {}, `tried ${tried}`) : null,
      record.error ? h("span", { class: "bad" }, record.error) : null, record.experiment ? h("span", {}, `experiment ${record.experiment}, arm ${record.arm}`) : null),
    scores.length === 0 ? h("p", { class: "missing" }, "Nothing was scored for it.") : h("table", {},
      head("predicted then", "first token", "a token", "cost", "asked over predicted", "running", "<why"), h("tbody", {}, ...scores)));
}

document.getElementById("decisions").addEventListener("click", (event) => {
  const id = event.target.dataset?.id;
  if (id === undefined) return;
  if (!opened.delete(id)) opened.add(id);
  drawDecisions(history.last.snapshot);
});
for (const id of ["filter", "by-backend", "by-outcome"]) {
  document.getElementById(id).addEventListener("input", () => { if (history.last !== null) drawDecisions(history.last.snapshot); });
}
