// Putting it together.
function redraw(what = "all") {
  const parts = chosen();
  if (what === "all") { drawTotals(parts); drawTrend(parts); drawTables(parts); }
  if (what !== "parts") drawHistogram(parts);
  drawParts(parts);
}
const stamp = (at) => {
  if (!data.timed) return String(at);
  const d = new Date(1000 * at), two = (n) => String(n).padStart(2, "0");
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}T${two(d.getHours())}:${two(d.getMinutes())}`;
};
const FIRST = count ? place(0) : 0, LAST = count ? place(count - 1) : 0;
function putPlaces() {
  byId("from").value = stamp(Math.max(FIRST, state.from));
  byId("to").value = stamp(data.timed ? Math.min(LAST + 59, state.to) : Math.min(LAST, state.to));
}
function choosePlaces(from, to) {
  Object.assign(state, { from, to, page: 0 });
  putPlaces();
  redraw();
}
function setUpFilters() {
  const category = byId("category");
  category.append(element("option", { value: -1 }, "all"), ...data.categories.map((word, k) => element("option", { value: k }, word || "(none)")));
  category.closest("label").hidden = data.categories.length < 2;
  category.addEventListener("change", () => { Object.assign(state, { category: Number(category.value), page: 0 }); redraw(); });
  for (const [id, key, none] of [["from", "from", -Infinity], ["to", "to", Infinity]]) {
    const input = byId(id);
    input.type = data.timed ? "datetime-local" : "number";
    input.addEventListener("change", () => {
      const at = data.timed ? new Date(input.value).getTime() / 1000 + (id === "to" ? 59.999 : 0) : Number(input.value);
      Object.assign(state, { [key]: input.value && Number.isFinite(at) ? at : none, page: 0 });
      redraw();
    });
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", (event) => {
    event.preventDefault();
    category.value = -1;
    state.category = -1;
    choosePlaces(-Infinity, Infinity);
  });
  const order = byId("order");
  order.append(...Object.entries(ORDERS).map(([key, [word]]) => element("option", { value: key }, word)));
  order.addEventListener("change", () => { Object.assign(state, { order: order.value, page: 0 }); redraw("parts"); });
  byId("find").addEventListener("input", (event) => { Object.assign(state, { find: event.target.value, page: 0 }); redraw("parts"); });
  putPlaces();
}
function setUpTheme() {
  const button = byId("theme"), root = document.documentElement;
  const put = (dark) => { root.dataset.theme = dark ? "dark" : "light"; button.textContent = dark ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colours`); };
  const wish = matchMedia("(prefers-color-scheme: dark)");
  put(wish.matches);
  wish.addEventListener("change", () => put(wish.matches));
  button.addEventListener("click", () => put(root.dataset.theme !== "dark"));
}
byId("span").textContent = data.timed && count
  ? `${plural(count, "part")}, ${asDate(FIRST)} ${asClock(FIRST)} to ${asDate(LAST)} ${asClock(LAST)} (${Intl.DateTimeFormat().resolvedOptions().timeZone})`
  : `${plural(count, "part")}, in the order in which they were inspected (no times were recorded)`;
byId("made").textContent = `Made ${asDate(data.made)} ${asClock(data.made)} by`;
if (Object.keys(pictures).length < count) byId("pictured").textContent = `${whole.format(Object.keys(pictures).length)} of ${plural(count, "part")} have a picture in this file.`;
setUpTheme();
setUpFilters();
setUpSlider(() => redraw("scores"));
setUpDetail();
drawFindings();
redraw();
let width = window.innerWidth;
window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; redraw(); } });
