// The page: pictures in, verdicts out, and a limit to try.

import { Failure, getJson, inspect } from "./api.js";
import { startCamera } from "./camera.js";
import { node, words } from "./dom.js";
import { draw, kindOf, readMap, thumbnail } from "./draw.js";
import { startLearning } from "./learn.js";
import { labelButtons, showParts } from "./parts.js";
import { promiseOf } from "./promise.js";

const AT_ONCE = 4, MOST_KEPT = 100;
const $ = (id) => document.getElementById(id);
const seen = [];
let about = null, current = null, limit = null, judgedBy = null, refreshParts = () => {};

// A score that another calibration gave says nothing at this one's limit.
const judgedBefore = ({ answer }) => answer.calibration !== (about.calibration?.id ?? "");
const limitFor = (one) => (judgedBefore(one) ? one.answer.limit : limit);
const verdictAt = ({ answer }, at) => (answer.score > at ? "anomalous" : answer.reasons.length ? "not_judged" : "good");

function showVerdicts() {
  for (const one of seen) {
    const verdict = one.answer ? verdictAt(one, limitFor(one)) : one.failure ? "failed" : "";
    one.pill.className = `pill ${verdict}`;
    one.pill.textContent = words(verdict) || "…";
    if (!one.mark) continue;
    one.mark.hidden = judgedBefore(one);
    one.mark.classList.toggle("over", one.answer.score > limit);
  }
}

function show(one) {
  current = one;
  for (const other of seen) other.button.setAttribute("aria-current", String(other === one));
  const { answer } = one;
  $("name").textContent = one.name;
  $("facts").hidden = $("picture").hidden = !answer;
  $("empty").hidden = Boolean(answer);
  if (!answer) {
    $("verdict").className = "failed";
    $("verdict").textContent = one.busy ? "Being inspected…" : words("failed");
    $("empty").textContent = one.failure ?? "";
    return;
  }
  const at = limitFor(one), verdict = verdictAt(one, at);
  $("verdict").className = verdict;
  $("verdict").textContent = words(verdict) + (verdict === answer.verdict ? "" : " at this limit");
  draw($("picture"), one, at, about, { map: $("show-map").checked, regions: $("show-regions").checked });
  $("picture").setAttribute("aria-label", `${one.name}: ${words(verdict)}, ${answer.regions.length} regions`);
  const times = Object.entries(answer.timings).filter(([name]) => name !== "total" && name !== "latency");
  const rows = [
    ["Score", `${answer.score.toFixed(4)}, limit ${at.toFixed(4)}${judgedBefore(one) ? ", judged before this calibration" : ""}`],
    ["Regions", answer.regions.length ? answer.regions.map((r) => `${kindOf(r.kinds)} ${r.area} px at ${Math.round(r.centroid[0])}, ${Math.round(r.centroid[1])}`).slice(0, 4).join("; ") + (answer.regions.length > 4 ? "; …" : "") : "none"],
    answer.ignored.length && ["Ignored", answer.ignored.map((r) => kindOf(r.kinds)).join(", ")],
    answer.reasons.length && ["Reasons", answer.reasons.join(", ")],
    ["Time", `${answer.timings.total.toFixed(0)} ms (${times.map(([name, ms]) => `${name} ${ms.toFixed(0)}`).join(", ")})`],
    ["Picture", `${answer.width} × ${answer.height}, ${answer.category}`],
    answer.part && ["Part", String(answer.part)],
    !one.bitmap && ["Shown", "This browser cannot show such files: the map alone is seen."],
    answer.note && ["Note", answer.note],
  ].filter(Boolean);
  $("numbers").replaceChildren(...rows.flatMap(([name, text]) => [node("dt", {}, name), node("dd", {}, text)]));
  $("labels").hidden = answer.part === null;
  labelButtons($("labels"), answer.part, one.label ?? null, (part) => { one.label = part.label; refreshParts(); });
}

function setLimit(value) {
  limit = value;
  $("limit").textContent = limit.toFixed(3);
  $("slider").setAttribute("aria-valuetext", `limit ${limit.toFixed(3)}`);
  $("limit-reset").disabled = limit === judgedBy;
  $("promise").textContent = promiseOf(about.calibration, limit);
  $("flag").textContent = `clipsam serve … --limit ${limit.toFixed(3)}`;
  showVerdicts();
  if (current) show(current);
}

function place(mark, score) {
  mark.style.left = `${Math.min(100, (100 * score) / $("slider").max)}%`;
  $("scale").append(mark);
}

async function judge(one) {
  try {
    one.bitmap = await createImageBitmap(one.file).catch(() => null);
    thumbnail(one.canvas, one.bitmap);
    const category = about.calibration ? "" : $("category").value;
    const answer = await inspect(one.file, { category, record: about.store && $("record").checked });
    one.map = await readMap(answer.images.map);
    one.answer = answer;
    place((one.mark = node("i", { className: "part", title: one.name })), answer.score);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    one.failure = error.message;
  } finally {
    one.busy = false;
    one.file = null;
  }
  showVerdicts();
  if (current === one || !current) show(one);
}

async function take(files) {
  const fresh = [...files].map((file) => {
    const canvas = node("canvas", { width: 88, height: 88 });
    const pill = node("span", { className: "pill" }, "…");
    const button = node("button", { type: "button" }, canvas, node("span", { className: "name" }, file.name), pill);
    const one = { file, name: file.name || "pasted picture", busy: true, canvas, pill, button };
    button.onclick = () => show(one);
    return one;
  });
  if (!fresh.length) return;
  seen.unshift(...fresh);
  for (const old of seen.splice(MOST_KEPT)) old.mark?.remove();
  $("results").replaceChildren(...seen.map((one) => node("li", {}, one.button)));
  show(fresh[0]);
  const waiting = [...fresh];
  const work = async () => {
    for (let one = waiting.shift(); one; one = waiting.shift()) {
      await judge(one);
      $("said").textContent = `${fresh.filter((f) => !f.busy).length} of ${fresh.length} inspected`;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  const count = (verdict) => fresh.filter((one) => one.answer?.verdict === verdict).length;
  const failed = fresh.filter((one) => one.failure).length;
  $("said").textContent = `${fresh.length} inspected: ${count("good")} good, ${count("anomalous")} anomalous` + (count("not_judged") ? `, ${count("not_judged")} not judged` : "") + (failed ? `, ${failed} failed` : "");
  refreshParts();
}

async function watchState() {
  const answer = await fetch("/v2/health/ready").catch(() => null);
  const text = answer?.ok ? "ready" : answer ? "not ready" : "not reachable";
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = `state ${answer?.ok ? "ready" : "down"}`;
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}

function listen() {
  const drop = $("drop");
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      const aim = event.target.closest?.("#learn") ? $("learn-drop") : drop;
      for (const one of [drop, $("learn-drop")]) one.classList.toggle("over", over && one === aim);
      if (name === "drop") take(event.dataTransfer.files);
    });
  }
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  $("files").onchange = () => { take($("files").files); $("files").value = ""; };
  $("slider").oninput = () => setLimit(Number($("slider").value));
  $("limit-reset").onclick = () => { $("slider").value = judgedBy; setLimit(judgedBy); };
  for (const id of ["show-map", "show-regions"]) $(id).onchange = () => current && show(current);
  startCamera((file) => take([file]));
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
$("theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");
watchState();
setInterval(watchState, 5000);
async function showAbout() {
  about = await getJson("/about");
  const { calibration } = about;
  $("about").textContent = `${calibration ? about.category : "not calibrated"}, bundle ${about.bundle}${calibration ? `, calibration ${calibration.id}` : ""}, ${about.provider}, clipsam ${about.version}`;
  judgedBy = about.limit;
  const scores = calibration?.good_scores ?? [];
  $("slider").max = Math.ceil(Math.max(judgedBy * 2, 1, ...scores) * 10) / 10;
  $("scale").replaceChildren();
  for (const score of scores.slice(-400)) place(node("i"), score);
  for (const one of seen) if (one.mark) place(one.mark, one.answer.score);
  $("slider").value = judgedBy;
  setLimit(judgedBy);
  $("category-box").hidden = calibration !== null;
}

try {
  await showAbout();
  $("category").replaceChildren(...about.categories.map((word) => node("option", { value: word }, word)));
  if (about.categories.includes("object")) $("category").value = "object";
  if (about.store) { $("record-box").hidden = false; refreshParts = showParts(); }
  if (about.calibrations) startLearning(about.categories, about.category, showAbout);
  listen();
} catch (error) {
  if (!(error instanceof Failure)) throw error;
  $("about").textContent = error.message;
}
