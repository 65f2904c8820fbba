// What happened over time: the share of anomalous parts, and the scores against the usual ones.
const BINS = [60, 300, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 604800, 2592000];
function bins(parts) {
  if (!parts.length) return [];
  const from = place(parts[0]), to = place(parts.at(-1));
  const most = Math.min(60, Math.max(6, Math.floor(byId("trend").clientWidth / 11)));
  const wide = data.timed ? BINS.find((b) => (to - from) / b <= most) || BINS.at(-1) : Math.max(1, Math.ceil((to - from + 1) / most));
  const zone = data.timed ? -60 * new Date(1000 * from).getTimezoneOffset() : -1;
  const start = (at) => Math.floor((at + zone) / wide) * wide - zone;
  const found = new Map();
  for (const i of parts) {
    const at = start(place(i));
    if (!found.has(at)) found.set(at, { from: at, to: at + wide, parts: [] });
    found.get(at).parts.push(i);
  }
  for (const bin of found.values()) {
    bin.judged = bin.parts.filter((i) => data.verdict[i] !== NOT_JUDGED).length;
    bin.bad = bin.parts.filter((i) => data.verdict[i] === ANOMALOUS).length;
    bin.none = bin.parts.length - bin.judged;
    bin.scores = ascending(bin.parts.filter(scored).map(value));
  }
  return [...found.values()].sort((a, b) => a.from - b.from);
}
const LEFT = 46, RIGHT = 12;

function frame(host, height, label, all, top, unit) {
  const [svg, width] = canvas(host, height, label);
  const low = height - 24;
  const x = scale(all[0].from, all.at(-1).to, LEFT, width - RIGHT), y = scale(0, top, low, 22);
  for (const v of ticks(0, top, 4)) {
    svg.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v), class: "grid-line" }));
    svg.append(shape("text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, unit(v)));
  }
  for (const [at, word] of timeTicks(all[0].from, all.at(-1).to, Math.max(2, Math.floor(width / 80)))) {
    svg.append(shape("line", { x1: x(at), x2: x(at), y1: low, y2: low + 5, class: "axis" }));
    svg.append(shape("text", { x: Math.min(Math.max(x(at), LEFT + 4), width - 24), y: low + 18, "text-anchor": "middle" }, word));
  }
  svg.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: low, y2: low, class: "axis" }));
  return { svg, width, x, y, low };
}
function mark(f, change, word) {
  if (!change || place(change.start) < state.from || place(change.start) > state.to) return;
  const at = f.x(place(change.start));
  if (at < LEFT || at > f.width - RIGHT) return;
  f.svg.append(shape("line", { x1: at, x2: at, y1: 14, y2: f.low, class: "change" }));
  const left = at > f.width * 0.62;
  f.svg.append(shape("text", { x: at + (left ? -6 : 6), y: 12, "text-anchor": left ? "end" : "start", class: "change-text" }, word));
}
function drawTrend(parts) {
  const all = bins(parts);
  for (const id of ["trend", "drift"]) byId(id).replaceChildren();
  byId("trend-note").textContent = all.length ? "Share of anomalous parts among those judged; grey: not judged. Choose a bar to see its time alone." : "No part is chosen.";
  if (!all.length) return;
  // A bin of a few parts would set the scale: it counts as if it had ten.
  const least = parts.length / all.length < 10 ? 1 : 10;
  const share = (b) => (b.judged ? b.bad / b.judged : 0), gone = (b) => b.none / b.parts.length;
  const top = Math.max(0.02, ...all.map((b) => Math.min(1, Math.max(b.bad / Math.max(least, b.judged), b.none / Math.max(least, b.parts.length))))) * 1.1;
  const worst = all.reduce((a, b) => (b.judged >= least && share(b) > share(a) ? b : a));
  const f = frame(byId("trend"), 250, `Share of anomalous parts over time; highest: ${percent(worst.bad, worst.judged)} from ${showPlace(worst.from)}`, all, Math.min(1, top), (v) => `${Number((100 * v).toPrecision(3))} %`);
  for (const b of all) {
    const x = f.x(b.from) + 0.5, wide = Math.max(1, f.x(b.to) - f.x(b.from) - 1.5);
    for (const [v, name, part] of [[gone(b), "bar-none", 0.32], [share(b), "bar-bad", 0.68]]) {
      const high = f.y(Math.min(v, 1) > top ? top : v);
      const at = name === "bar-none" ? x + wide * 0.68 : x;
      if (v > 0) f.svg.append(shape("rect", { x: at, width: Math.max(0.8, wide * part), y: high, height: f.low - high, class: name }));
    }
    const text = `${showPlace(b.from)}: ${plural(b.parts.length, "part")}, ${b.bad} anomalous (${percent(b.bad, b.judged)}), ${b.none} not judged`;
    const hit = shape("rect", { x: f.x(b.from), width: Math.max(2, f.x(b.to) - f.x(b.from)), y: 14, height: f.low - 14, class: "hit", tabindex: all.length > 1 ? 0 : -1, role: "button", "aria-label": text });
    hit.append(shape("title", {}, text));
    const pick = () => choosePlaces(b.from, b.to - (data.timed ? 0.001 : 1));
    hit.addEventListener("click", pick);
    hit.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } });
    f.svg.append(hit);
  }
  f.svg.setAttribute("role", "group");
  mark(f, data.changes.anomalous, "changed here");
  drawDrift(parts, all);
}
function drawDrift(parts, all) {
  const any = parts.some(scored);
  // Without a calibration the usual scores are the first of the run, whatever time is chosen.
  const before = judged.filter((i) => state.category < 0 || data.category[i] === state.category);
  const first = ascending(before.slice(0, Math.max(20, Math.ceil(before.length / 5))).map(value));
  const usual = data.usual ? data.usual.range.map((score) => score / (relative ? data.usual.limit : 1)) : [0.05, 0.5, 0.95].map((q) => quantile(first, q));
  byId("usual").textContent = data.usual ? "good parts of the calibration" : "the first fifth of the parts";
  byId("drift-box").hidden = !any;
  if (!any) return;
  const high = all.map((b) => quantile(b.scores, 0.95) ?? 0);
  const top = Math.max(...high, usual[2], state.limit ?? 0, limitInForce ?? 0) * 1.1;
  const f = frame(byId("drift"), 240, `Scores over time; usual range ${short(usual[0])} to ${short(usual[2])}`, all, top, short);
  f.svg.append(shape("rect", { x: LEFT, width: f.width - RIGHT - LEFT, y: f.y(usual[2]), height: Math.max(1, f.y(usual[0]) - f.y(usual[2])), class: "band" }));
  for (const [q, name] of [[0.95, "line-high"], [0.5, "line-median"]]) {
    const points = all.filter((b) => b.scores.length).map((b) => `${f.x((b.from + b.to) / 2)},${f.y(quantile(b.scores, q))}`);
    f.svg.append(shape("polyline", { points: points.join(" "), class: name }));
  }
  if (limitInForce !== null) f.svg.append(shape("line", { x1: LEFT, x2: f.width - RIGHT, y1: f.y(limitInForce), y2: f.y(limitInForce), class: "limit-line" }));
  mark(f, data.changes.score, "scores moved here");
}
