// Making elements. Text from the data only ever becomes text.
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, v] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", v);
    else if (v !== null && v !== false) node.setAttribute(key, v === true ? "" : v);
  }
  node.append(...children);
  return node;
}
function shape(name, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, v] of Object.entries(attributes)) node.setAttribute(key, v);
  if (text !== null) node.textContent = text;
  return node;
}
function canvas(host, height, label) {
  const width = Math.max(240, host.clientWidth);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  host.replaceChildren(svg);
  return [svg, width];
}
const scale = (from, to, start, end) => (v) => start + ((v - from) / (to - from || 1)) * (end - start);

// Round numbers that cover `from` to `to` in about `wanted` steps.
function ticks(from, to, wanted) {
  const raw = (to - from) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw * 0.999) * power;
  const found = [];
  for (let v = Math.ceil(from / step - 1e-9) * step; v <= to + step * 1e-6; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}

// Marks of an axis of time: midnights where days are many, else round hours or minutes.
function timeTicks(from, to, wanted) {
  if (!data.timed) return ticks(from, to, wanted).map((at) => [at, whole.format(at)]);
  const steps = [60, 300, 900, 3600, 10800, 21600, 43200, 86400, 172800, 345600, 604800, 1209600, 2592000, 7776000, 31536000];
  const step = steps.find((s) => (to - from) / s <= wanted) || steps.at(-1);
  const zone = -60 * new Date(1000 * from).getTimezoneOffset(); // marks lie on local hours
  const found = [];
  for (let at = Math.ceil((from + zone) / step) * step - zone; at <= to; at += step) found.push([at, step < 86400 ? asClock(at) : asDay(at)]);
  return found;
}
function table(id, head, rows, words = false) {
  const node = byId(id);
  node.classList.toggle("words", words);
  node.replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((h) => element("th", { scope: "col" }, h)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))))),
  );
}
function buttons(host, options, current, choose) {
  host.replaceChildren(...options.map(([key, label]) =>
    element("button", { type: "button", "data-key": key, "aria-pressed": String(key === current()), onclick: () => choose(key) }, label)));
}
const pill = (i) => element("span", { class: `pill ${data.verdicts[data.verdict[i]]}` }, `${SIGNS[data.verdict[i]]} ${WORDS[data.verdict[i]]}`);
