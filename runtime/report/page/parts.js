// The list: which parts, in which order, a page at a time.
const PAGE = window.innerWidth > 560 ? 48 : 24;
const wouldChange = (i) => scored(i) && state.limit !== null && value(i) > state.limit !== (data.verdict[i] === ANOMALOUS);
const LISTS = {
  all: ["All", () => true],
  anomalous: ["▲ Anomalous", (i) => data.verdict[i] === ANOMALOUS],
  not_judged: ["– Not judged", (i) => data.verdict[i] === NOT_JUDGED],
  good: ["● Good", (i) => data.verdict[i] === GOOD],
  change: ["Would change", wouldChange],
  wrong: ["Label disagrees", (i) => i in data.label && data.verdict[i] !== NOT_JUDGED && data.label[i] !== data.verdict[i]],
};
const RANK = [2, 0, 1]; // anomalous, then not judged, then good
const near = (i) => (data.score[i] === null ? Infinity : Math.abs(excess(i) - 1));
const ORDERS = {
  worst: ["worst first", (a, b) => RANK[data.verdict[a]] - RANK[data.verdict[b]] || excess(b) - excess(a)],
  new: ["newest first", (a, b) => b - a],
  old: ["oldest first", (a, b) => a - b],
  near: ["nearest to the limit", (a, b) => near(a) - near(b)],
};
const VIEWS = { picture: "Picture", map: "Map", both: "Both" };
let listed = [];

function drawParts(parts) {
  const needle = state.find.trim().toLowerCase();
  const has = (i) => [data.name[i], data.serial[i] || "", data.message[i] || "", ...(data.reasons[i] || [])].some((t) => t.toLowerCase().includes(needle));
  const found = needle ? parts.filter(has) : parts;
  const options = Object.entries(LISTS).map(([key, [word, test]]) => [key, word, found.filter(test).length])
    .filter(([key, , n]) => n || key === "all" || key === state.verdict || key === "good" || key === "anomalous");
  buttons(byId("verdicts"), options.map(([key, word, n]) => [key, `${word} ${whole.format(n)}`]), () => state.verdict, (key) => {
    state.verdict = key; state.page = 0; redraw("parts"); byId("verdicts").querySelector(`[data-key="${key}"]`).focus();
  });
  buttons(byId("view"), Object.entries(VIEWS), () => state.view, (key) => {
    state.view = key; redraw("parts"); byId("view").querySelector(`[data-key="${key}"]`).focus();
  });
  listed = found.filter(LISTS[state.verdict][1]).sort(ORDERS[state.order][1]);
  const pages = Math.max(1, Math.ceil(listed.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const start = state.page * PAGE;
  const grid = byId("grid");
  grid.className = state.view;
  grid.start = start + 1;
  grid.replaceChildren(...listed.slice(start, start + PAGE).map((i, k) => card(i, start + k)));
  if (!listed.length) grid.replaceChildren(element("li", {}, element("p", { class: "muted" }, "No part is like this.")));
  drawPager(pages);
}
function drawPager(pages) {
  const go = (page) => () => { state.page = page; redraw("parts"); byId("parts").scrollIntoView(); };
  const button = (word, page) => { const b = element("button", { type: "button", onclick: go(page) }, word); b.disabled = page < 0 || page >= pages; return b; };
  byId("pager").replaceChildren(...(pages > 1 ? [button("Previous", state.page - 1), element("span", {}, `${state.page + 1} of ${pages}`), button("Next", state.page + 1)] : []));
}
function card(i, position) {
  const facts = element("span", { class: "facts" }, pill(i), data.score[i] === null ? "" : short(data.score[i]));
  const more = [data.timed ? asTime(data.time[i]) : "", i in data.label ? `labelled ${data.label[i] ? "defective" : "good"}` : ""].filter(Boolean).join(" · ");
  return element("li", {}, element("button", { type: "button", "data-part": i, onclick: () => showDetail(position) },
    shot(i, state.view),
    element("div", { class: "card" }, nameOf(i), facts, meter(i), element("span", { class: "facts" }, more || " "))));
}
// The end of a long path tells parts apart, so its beginning is what is cut.
function nameOf(i) {
  const cut = data.name[i].lastIndexOf("/", data.name[i].length - 2) + 1;
  return element("span", { class: "name", title: data.name[i] }, element("span", {}, data.name[i].slice(0, cut)), element("b", {}, data.name[i].slice(cut)));
}
// How far a score is towards and over the limit, which stands in the middle.
function meter(i) {
  const bar = element("div", { class: "meter" });
  if (data.score[i] === null || !data.limit[i]) return bar;
  const fill = element("i", { class: data.score[i] > data.limit[i] ? "over" : "" }), tick = element("b");
  fill.style.width = `${Math.min(100, Math.max(0, excess(i) * 50))}%`;
  tick.style.left = "50%";
  bar.append(fill, tick);
  return bar;
}
function shot(i, view) {
  const host = element("div", { class: "shot" });
  for (const layer of view === "both" ? ["picture", "map"] : [view]) host.append(element("div", { class: "view" }, layers(i, layer)));
  return host;
}
// The picture, with the map over it where that is asked for. Both are addresses inside this file.
function layers(i, layer) {
  const [picture, map] = pictures[i] || ["", ""];
  if (!picture && !map) return element("p", {}, "no picture in this report");
  const box = element("div");
  const add = (source, words) => source.startsWith("data:image/webp;base64,") && box.append(element("img", { src: source, alt: words, decoding: "async" }));
  add(picture, `Picture of ${data.name[i]}`);
  if (layer === "map" || !picture) {
    add(map, `Map of ${data.name[i]}`);
    if (data.boxes[i]) box.append(regions(i)); // the map's colour may be the part's
  }
  return box;
}
