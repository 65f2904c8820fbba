// The histogram of scores, and what another limit would come to.
const STEPS = 60;
function scoreRange() {
  const all = judged.map(value);
  const top = all.reduce((a, b) => Math.max(a, b), relative ? 1 : limitInForce ?? 0), low = all.reduce((a, b) => Math.min(a, b), 0);
  return [low, (top || 1) * 1.02];
}
const [scoreLow, scoreTop] = scoreRange();

function drawHistogram(parts) {
  const those = parts.filter(scored);
  byId("relative").textContent = relative ? ", as multiples of each part's limit" : "";
  const counts = Array(STEPS).fill(0), known = [Array(STEPS).fill(0), Array(STEPS).fill(0)];
  const step = (i) => Math.max(0, Math.min(STEPS - 1, Math.floor(((value(i) - scoreLow) / (scoreTop - scoreLow)) * STEPS)));
  for (const i of those) {
    counts[step(i)]++;
    if (i in data.label) known[data.label[i]][step(i)]++;
  }
  const labelled = those.some((i) => i in data.label);
  const [svg, width] = canvas(byId("histogram"), labelled ? 286 : 238, `Histogram of ${plural(those.length, "score")}`);
  const low = 214, left = 40, right = width - 10; // where the middle of the slider's thumb can be
  // The few anomalous parts must be seen beside thousands of good ones: a scale of powers of ten.
  const most = Math.max(10, ...counts), y = scale(0, Math.log10(1 + most), low, 26), x = scale(scoreLow, scoreTop, left, right);
  for (let v = 1; v <= most; v *= 10) {
    svg.append(shape("line", { x1: left, x2: right, y1: y(Math.log10(1 + v)), y2: y(Math.log10(1 + v)), class: "grid-line" }));
    svg.append(shape("text", { x: left - 6, y: y(Math.log10(1 + v)) + 4, "text-anchor": "end" }, whole.format(v)));
  }
  const at = (k) => scoreLow + (k / STEPS) * (scoreTop - scoreLow);
  counts.forEach((n, k) => {
    if (!n) return;
    const cut = state.limit === null ? Infinity : state.limit;
    const split = Math.min(Math.max(cut, at(k)), at(k + 1)); // the limit may lie within a bar
    for (const [a, b, name] of [[at(k), split, "bar-good"], [split, at(k + 1), "bar-bad"]]) {
      const wide = x(b) - x(a) - (b === at(k + 1) ? 1 : 0);
      if (wide > 0) svg.append(shape("rect", { x: x(a), width: wide, y: y(Math.log10(1 + n)), height: low - y(Math.log10(1 + n)), class: name }));
    }
  });
  svg.append(shape("line", { x1: left, x2: right, y1: low, y2: low, class: "axis" }));
  for (const v of ticks(scoreLow, scoreTop, Math.max(3, Math.floor(width / 80)))) svg.append(shape("text", { x: Math.min(x(v), width - 14), y: low + 17, "text-anchor": "middle" }, short(v)));
  if (labelled) {
    ["labelled good", "labelled defective"].forEach((word, which) => {
      const line = low + 36 + 18 * which;
      known[which].forEach((n, k) => n && svg.append(shape("circle", { cx: x(at(k + 0.5)), cy: line, r: Math.min(6, 2 + Math.log2(n)), class: which ? "bar-bad" : "bar-good" })));
      // Good parts crowd the left, defective ones the right.
      svg.append(shape("text", { x: which ? left : right, y: line + 4, "text-anchor": which ? "start" : "end", class: "halo" }, word));
    });
  }
  for (const [v, name] of [[limitInForce, "limit-old"], [state.limit, "limit-line"]]) {
    if (v !== null) svg.append(shape("line", { x1: x(v), x2: x(v), y1: 16, y2: low, class: name }));
  }
  recount(those);
}
function recount(judgedNow) {
  const over = (limit) => (i) => limit !== null && value(i) > limit;
  const now = over(state.limit), before = (i) => data.verdict[i] === ANOMALOUS;
  const tally = (test, among) => among.filter(test).length;
  const known = [0, 1].map((which) => judgedNow.filter((i) => data.label[i] === which));
  const row = (word, among, turned = false) => {
    const of = (test) => { const n = tally(test, among); return turned ? among.length - n : n; };
    const [a, b] = [of(before), of(now)];
    return [word, `${whole.format(a)} (${percent(a, among.length)})`, element("span", { class: a === b ? "" : "changed" }, `${whole.format(b)} (${percent(b, among.length)})`)];
  };
  const rows = [row("Anomalous", judgedNow), row("Good", judgedNow, true)];
  if (known[0].length) rows.push(row(`False alarms, of ${known[0].length} labelled good`, known[0]));
  if (known[1].length) {
    rows.push(row(`Found (recall), of ${known[1].length} labelled defective`, known[1]));
    rows.push(row("Missed", known[1], true));
  }
  table("recount", ["", "as judged", "at this limit"], state.limit === null ? rows.map((r) => [r[0], r[1], "–"]) : rows);
  const labelled = known[0].length + known[1].length;
  byId("recount-note").textContent = labelled ? `${plural(labelled, "part")} carry a label. They are rarely a fair sample of all parts.` : "No part carries a label, so false alarms and misses cannot be counted.";
  const word = state.limit === null ? "not recorded" : `${short(state.limit)}${relative ? " × limit" : ""}`;
  byId("limit").textContent = `Limit ${word}`;
  byId("slider").setAttribute("aria-valuetext", `limit ${word}: ${tally(now, judgedNow)} anomalous`);
  byId("limit-reset").disabled = state.limit === limitInForce;
}
function setUpSlider(changed) {
  const slider = byId("slider");
  const span = scoreTop - scoreLow;
  Object.assign(slider, { min: scoreLow, max: scoreTop, step: span / 1000 });
  const put = () => { slider.value = state.limit ?? scoreTop; };
  slider.disabled = !judged.length;
  slider.addEventListener("input", () => {
    state.limit = Number(slider.value);
    // The step nearest to the limit in force is the limit itself.
    if (limitInForce !== null && Math.abs(state.limit - limitInForce) < span / 1500) state.limit = limitInForce;
    changed();
  });
  byId("limit-reset").addEventListener("click", () => { state.limit = limitInForce; put(); changed(); });
  if (limitInForce === null) byId("limit-reset").hidden = true;
  put();
}
