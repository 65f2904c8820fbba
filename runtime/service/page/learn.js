// A calibration from dropped good parts.

import { Failure, getJson, send } from "./api.js";
import { node } from "./dom.js";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 3;
let busy = false;

const post = async (path, body, headers) => (await send(path, { method: "POST", body, headers })).json();
const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;

function progress(share) {
  $("learn-progress").hidden = share === null;
  $("learn-progress").value = share ?? 0;
}

async function run(files) {
  const wish = { category: $("learn-category").value, false_alarms: Number($("learn-share").value) || null };
  const { id } = await post("/calibrations", JSON.stringify(wish), { "Content-Type": "application/json" });
  const path = `/calibrations/${id}`, waiting = [...files];
  let sent = 0;
  const upload = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      await post(`${path}/parts?name=${encodeURIComponent(file.name.slice(-100))}`, file, { "Content-Type": "application/octet-stream" });
      $("learn-said").textContent = `${++sent} of ${files.length} sent`;
      progress((0.1 * sent) / files.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, upload));
  let state = await post(`${path}/start`);
  while (state.state === "running") {
    const { what, done, total } = state.progress;
    if (total) {
      $("learn-said").textContent = `${what}: ${done} of ${total}`;
      progress(what === "good parts" ? 0.1 + (0.6 * done) / total : 0.7 + (0.3 * done) / total);
    }
    await new Promise((done) => setTimeout(done, 400));
    state = await getJson(path);
  }
  if (state.state === "failed") throw new Failure(state.error);
  return [path, state];
}

async function learn(files, changed) {
  if (busy || !files.length) return;
  busy = true;
  $("learn-done").hidden = true;
  try {
    const [path, { calibration, skipped }] = await run([...files]);
    const { limit, false_alarms, confidence, above, parts, planted, duplicates } = calibration;
    $("learn-said").textContent = `Limit ${limit.toFixed(3)}: of good parts like these, at most ${percent(false_alarms)} score above it, with ${percent(confidence)} confidence (${above} of ${parts} do).`
      + (planted[1] ? ` Of ${planted[1]} defects drawn onto them it finds ${planted[0]}; real ones are others.` : "")
      + (duplicates ? ` ${duplicates} show a part that was seen already.` : "")
      + (skipped.length ? ` Left out: ${skipped.join(" ")}` : "");
    $("learn-done").hidden = false;
    $("learn-use").onclick = () => tell(async () => {
      await post(`${path}/use`);
      $("learn-said").textContent = `Parts are judged by ${calibration.file} until the service ends; start it with --calibration ${calibration.file} to keep it.`;
      $("learn-done").hidden = true;
      await changed();
    });
    $("learn-save").onclick = () => tell(async () => {
      const url = URL.createObjectURL(await (await send(`${path}/file`)).blob());
      node("a", { href: url, download: calibration.file }).click();
      URL.revokeObjectURL(url);
    });
  } finally {
    busy = false;
    progress(null);
  }
}

async function tell(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    $("learn-said").textContent = error.message;
  }
}

// `changed` is called when the limit is another one.
export function startLearning(categories, category, changed) {
  $("learn").hidden = false;
  $("learn-category").replaceChildren(...categories.map((word) => node("option", { value: word }, word)));
  $("learn-category").value = category ?? (categories.includes("object") ? "object" : categories[0]);
  $("learn-files").onchange = () => { tell(() => learn([...$("learn-files").files], changed)); };
  $("learn").addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    for (const drop of document.querySelectorAll(".drop")) drop.classList.remove("over");
    tell(() => learn([...event.dataTransfer.files], changed));
  });
}
