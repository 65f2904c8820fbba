// The latest parts of the store, and what people say of them.

import { Failure, getJson, label, send } from "./api.js";
import { node, words } from "./dom.js";

const PAGE = innerWidth < 560 ? 8 : 24, SECONDS = 4;
const list = document.getElementById("parts"), older = document.getElementById("older");
let next = null, extended = false, shown = "";

// The two buttons: pressing the one that is pressed takes the label back.
export function labelButtons(box, id, said, done) {
  for (const button of box.querySelectorAll("[data-label]")) {
    button.setAttribute("aria-pressed", String(button.dataset.label === said));
    button.disabled = id === null;
    button.onclick = async () => {
      const wanted = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.label;
      try {
        const part = await label(id, wanted);
        labelButtons(box, id, part.label, done);
        done?.(part);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        document.getElementById("said").textContent = error.message;
      }
    };
  }
}

async function picture(shot, part) {
  if (part.picture === null) return;
  const answer = await send(`/parts/${part.id}/picture?size=320`).catch(() => null);
  if (!answer) return;
  const image = node("img", { alt: "", src: URL.createObjectURL(await answer.blob()) });
  image.onload = () => URL.revokeObjectURL(image.src);
  shot.replaceChildren(image);
}

function card(part) {
  const what = part.serial ?? part.name;
  const shot = node("div", { className: "shot" }, part.picture === null ? "no picture kept" : "…");
  const buttons = ["good", "defective"].map((said) => {
    const button = node("button", { type: "button" }, said === "good" ? "Good" : "Defective");
    button.dataset.label = said;
    button.setAttribute("aria-label", `Part ${part.id}, ${what}, is ${said}`);
    return button;
  });
  const row = node("div", { className: "row" }, ...buttons);
  labelButtons(row, part.id, part.label);
  const score = part.score === null ? part.reasons.join(", ") : `${part.score.toFixed(3)} / ${part.limit.toFixed(3)}`;
  const time = new Date(part.judged_at).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
  const item = node("li", {}, shot, node("div", { className: "card" },
    node("div", { className: `pill ${part.verdict}` }, words(part.verdict)),
    node("div", { className: "name", title: part.name }, what),
    node("div", { className: "muted" }, score), node("div", { className: "muted" }, time), row));
  item.dataset.part = part.id;
  picture(shot, part);
  return item;
}

async function refresh() {
  const found = await getJson(`/parts?limit=${PAGE}`).catch(() => null);
  if (!found) return;
  const state = found.parts.map((part) => `${part.id}${part.label}`).join();
  if (state === shown) return;
  shown = state;
  const there = new Map([...list.children].map((item) => [Number(item.dataset.part), item]));
  const items = found.parts.map((part) => {
    const item = there.get(part.id) ?? card(part);
    labelButtons(item, part.id, part.label);
    return item;
  });
  list.replaceChildren(...(items.length ? items : [node("p", { className: "muted" }, "No part yet.")]));
  next = found.next;
  extended = false;
  older.hidden = next === null;
}

older.onclick = async () => {
  const found = await getJson(`/parts?limit=${PAGE}&before=${next}`);
  extended = true;
  list.append(...found.parts.map(card));
  next = found.next;
  older.hidden = next === null;
};

export function showParts() {
  const follow = document.getElementById("follow");
  document.getElementById("parts-box").hidden = false;
  refresh();
  setInterval(() => { if (follow.checked && !extended && !document.hidden) refresh(); }, 1000 * SECONDS);
  follow.onchange = () => { if (follow.checked) { shown = ""; refresh(); } };
  return refresh;
}
