// Totals, findings, time, reasons, what ran.
function drawTotals(parts) {
  const of = (verdict) => parts.filter((i) => data.verdict[i] === verdict).length;
  const bad = of(ANOMALOUS), none = of(NOT_JUDGED), sure = parts.length - none;
  const total = ascending(parts.map((i) => data.stages.total?.[i]).filter((ms) => ms !== null && ms !== undefined));
  const entries = [
    ["", "Parts", whole.format(parts.length), data.leftOut ? `${whole.format(data.leftOut)} older ones left out` : ""],
    ["anomalous", "▲ Anomalous", whole.format(bad), `${percent(bad, sure)} of those judged`],
    ["good", "● Good", whole.format(sure - bad), `${percent(sure - bad, sure)} of those judged`],
    ["not_judged", "– Not judged", whole.format(none), `${percent(none, parts.length)} of all`],
  ];
  if (total.length) entries.push(["", "Time a part", `${short(quantile(total, 0.5))} ms`, `99 % within ${short(quantile(total, 0.99))} ms`]);
  byId("totals").replaceChildren(...entries.map(([name, word, n, more]) => element("div", { class: name }, element("dt", {}, word), element("dd", {}, n, element("small", {}, more)))));
  const all = parts.length === count ? "all parts" : `${plural(parts.length, "part")} of ${whole.format(count)}`;
  byId("shown").textContent = `Showing ${all}`;
}
function drawFindings() {
  const { anomalous, notJudged, score, time } = data.changes;
  const found = [];
  const add = (change, text) => found.push([change.start, text]);
  const since = (change) => (data.timed ? `since ${asTime(place(change.start))}` : `from ${showPlace(place(change.start))} on`);
  const rate = (v) => percent(v * 1000, 1000);
  if (anomalous) {
    const worse = anomalous.after > anomalous.before;
    add(anomalous, `${worse ? "It got worse" : "It got better"} ${since(anomalous)}: ${rate(anomalous.after)} anomalous, ${rate(anomalous.before)} before.`);
  }
  if (score) add(score, `Scores moved ${score.after > score.before ? "up" : "down"} ${since(score)}: half of the parts lie below ${short(score.after)}, ${short(score.before)} before.`);
  if (notJudged) add(notJudged, `${notJudged.after > notJudged.before ? "More" : "Fewer"} parts could not be judged ${since(notJudged)}: ${rate(notJudged.after)}, ${rate(notJudged.before)} before.`);
  if (time && Math.abs(time.after / time.before - 1) > 0.1) add(time, `Parts take ${time.after > time.before ? "longer" : "less time"} ${since(time)}: ${short(time.after)} ms, ${short(time.before)} ms before.`);
  for (const [verdict, word] of [[NOT_JUDGED, "could not be judged"], [ANOMALOUS, "were anomalous"]]) {
    const [start, length] = longest(verdict);
    if (length < 5 || length > count / 2) continue;
    const why = verdict === NOT_JUDGED && data.reasons[start] ? ` (${data.reasons[start].join(", ")})` : "";
    found.push([start, `${length} parts in a row ${word}${why}: ${showPlace(place(start))}.`, start + length - 1]);
  }
  const worse = anomalous?.after > anomalous?.before || score?.after > score?.before || notJudged?.after > notJudged?.before;
  byId("findings-box").classList.toggle("calm", !worse);
  const bad = data.verdict.filter((v) => v === ANOMALOUS).length, none = data.verdict.filter((v) => v === NOT_JUDGED).length;
  if (!found.length) found.push([null, `${plural(bad, "part")} of ${whole.format(count)} anomalous, ${whole.format(none)} not judged; no clear change over the time shown.`]);
  byId("findings").replaceChildren(...found.map(([start, text, end]) => element("li", {}, element("span", {}, text),
    start === null ? "" : element("button", { type: "button", onclick: () => choosePlaces(place(start), end === undefined ? Infinity : place(end)) }, end === undefined ? "Show the parts since" : "Show these parts"))));
}
// The longest run of parts with a verdict, one after another: where it starts, how long it is.
function longest(verdict) {
  let best = [0, 0], length = 0;
  for (let i = 0; i < count; i++) {
    length = data.verdict[i] === verdict ? length + 1 : 0;
    if (length > best[1]) best = [i - length + 1, length];
  }
  return best;
}
function drawTables(parts) {
  const rows = [];
  for (const [stage, all] of Object.entries(data.stages)) {
    const values = ascending(parts.map((i) => all[i]).filter((ms) => ms !== null));
    if (values.length) rows.push([stage, values.length, ...[0.5, 0.95, 0.99, 1].map((q) => quantile(values, q))]);
  }
  const most = Math.max(...rows.map((r) => r[4]), 0.001);
  table("latency", ["stage", "parts", "median ms", "95 %", "99 %", "longest", ""], rows.map((r) => {
    const bar = element("div", { class: "span-bar", title: "median to 99 %" }), fill = element("i");
    fill.style.left = `${(100 * r[2]) / most}%`;
    fill.style.width = `${Math.max(2, (100 * (r[4] - r[2])) / most)}%`;
    bar.append(fill);
    return [r[0], whole.format(r[1]), ...r.slice(2).map((v) => short(v)), bar];
  }));
  const sam = parts.filter((i) => data.sam[i]).length, sure = parts.filter((i) => data.verdict[i] !== NOT_JUDGED).length, cut = parts.filter((i) => late.has(i)).length;
  byId("latency-note").textContent = rows.length ? `SAM was needed for ${percent(sam, sure)} of the parts${cut ? `; for ${whole.format(cut)} it was left out to keep the deadline` : ""}. "total" is the sum of the stages, "latency" includes waiting.` : "No times were recorded.";
  const why = new Map();
  for (const i of parts) if (data.verdict[i] === NOT_JUDGED) for (const reason of data.reasons[i] || ["no reason recorded"]) why.set(reason, (why.get(reason) || 0) + 1);
  const reasons = [...why].sort((a, b) => b[1] - a[1]);
  byId("reasons").closest("section").hidden = !reasons.length;
  table("reasons", ["reason", "parts"], reasons.slice(0, 12).map(([word, n]) => [word, whole.format(n)]));
  if (reasons.length > 12) byId("reasons").append(element("tfoot", {}, element("tr", {}, element("td", {}, `and ${reasons.length - 12} more`))));
  const events = data.events.filter(([at]) => !data.timed || (at >= state.from && at <= state.to)).slice(0, 20);
  byId("events").closest("section").hidden = !events.length;
  table("events", ["when", "", ""], events.map(([at, kind, message]) => [at === null ? "–" : asTime(at), kind, message]), true);
  const runs = data.runs.map((ran, k) => [ran, parts.filter((i) => data.run[i] === k)]).filter(([, those]) => those.length);
  const keys = [...new Set(runs.flatMap(([ran]) => Object.keys(ran)))];
  table("ran", [data.timed ? "from" : "from part", "to", "parts", ...keys], runs.map(([ran, those]) => {
    const ends = [those[0], those.at(-1)].map((i) => (data.timed ? asTime(place(i)) : whole.format(place(i))));
    return [...ends, whole.format(those.length), ...keys.map((key) => ran[key] ?? "–")];
  }), true);
}
