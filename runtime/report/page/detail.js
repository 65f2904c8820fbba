// One part, large: picture and map with its regions, and all that is known of it.
let shown = 0;
function showDetail(position) {
  shown = position;
  const i = listed[position], dialog = byId("detail");
  const move = (by) => { const b = element("button", { type: "button", onclick: () => showDetail(position + by) }, by < 0 ? "← Previous" : "Next →"); b.disabled = !listed[position + by] && listed[position + by] !== 0; return b; };
  const shots = element("div", { class: "shot" });
  for (const [layer, word] of [["picture", "Picture"], ["map", "Map: orange from the limit on, yellow far above it"]]) {
    const inner = layers(i, layer);
    if (inner.tagName === "DIV" && data.boxes[i]) {
      inner.querySelector("svg")?.remove();
      inner.append(regions(i, true));
    }
    shots.append(element("figure", {}, element("div", { class: "view" }, inner), element("figcaption", {}, word)));
  }
  const facts = [
    ["Verdict", pill(i)], ["Score", short(data.score[i])], ["Limit", short(data.limit[i])],
    ["Why not judged", data.verdict[i] === NOT_JUDGED ? (data.reasons[i] || []).join("; ") : ""],
    ["Reasons", data.verdict[i] !== NOT_JUDGED ? (data.reasons[i] || []).join("; ") : ""],
    ["Message", data.message[i]],
    ["Taken", data.timed ? new Date(1000 * data.time[i]).toLocaleString("en-GB") : ""],
    ["Serial", data.serial[i]], ["Category", data.categories[data.category[i]]],
    ["Label", i in data.label ? ["good", "defective"][data.label[i]] : ""],
    ["Regions", (data.boxes[i] || []).map(([x, y, w, h, s, kind, ignored], k) => `${k + 1}: ${kind ? `${kind}${ignored ? " (ignored)" : ""}, ` : ""}${Math.round(w)} × ${Math.round(h)} px at ${Math.round(x)}, ${Math.round(y)}${s === null ? "" : `, score ${short(s)}`}`).join("; ")],
    ["Time", Object.entries(data.stages).filter(([, all]) => all[i] !== null).map(([stage, all]) => `${stage} ${short(all[i])} ms`).join(", ")],
    ["Deadline", late.has(i) ? "SAM was left out to keep it" : ""],
    ...Object.entries(data.runs[data.run[i]]),
  ];
  dialog.replaceChildren(
    element("div", { class: "row" }, move(-1), element("span", { class: "muted" }, `${whole.format(position + 1)} of ${whole.format(listed.length)}`), move(1), element("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Close")),
    element("h2", { id: "detail-title" }, data.name[i]),
    shots,
    element("dl", {}, ...facts.filter(([, v]) => v).flatMap(([word, v]) => [element("dt", {}, word), element("dd", {}, v)])),
  );
  if (!dialog.open) dialog.showModal();
}
function regions(i, numbered = false) {
  const [width, height] = data.size[i];
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const name of ["under", "over"]) {
    for (const [x, y, w, h, , , ignored] of data.boxes[i]) svg.append(shape("rect", { x, y, width: w, height: h, class: ignored ? `${name} ignored` : name }));
  }
  if (!numbered) return svg;
  const size = Math.max(width, height) / 24;
  data.boxes[i].forEach(([x, y, , , , kind], k) => svg.append(shape("text", { x: x + size / 4, y: y > size ? y - size / 4 : y + size }, `${k + 1}${kind ? ` ${kind}` : ""}`)));
  svg.querySelectorAll("text").forEach((t) => { t.style.fontSize = `${size}px`; t.style.strokeWidth = `${size / 6}px`; });
  return svg;
}
function setUpDetail() {
  const dialog = byId("detail");
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && shown + by >= 0 && shown + by < listed.length) { event.preventDefault(); showDetail(shown + by); }
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const back = document.querySelector(`[data-part="${listed[shown]}"]`);
    if (back) back.focus();
  });
}
