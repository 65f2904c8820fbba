// Requests to the service this page came from.

export class Failure extends Error {}

let token = sessionStorage.getItem("token") ?? "";
let asking = null;

function askToken() {
  asking ??= new Promise((done) => {
    const dialog = document.getElementById("ask");
    dialog.addEventListener("close", () => {
      token = document.getElementById("token").value.trim();
      sessionStorage.setItem("token", token);
      asking = null;
      done();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// The answer; waits and tries again while the queue is full. Throws Failure with a sentence.
export async function send(path, options = {}, patience = 20) {
  const used = token;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) } });
  } catch {
    throw new Failure("The service cannot be reached.");
  }
  if (answer.status === 401) {
    if (used === token) await askToken();
    return send(path, options, patience);
  }
  if ((answer.status === 429 || answer.status === 503) && answer.headers.has("Retry-After") && patience > 0) {
    await new Promise((done) => setTimeout(done, 1000 * Math.min(5, answer.headers.get("Retry-After"))));
    return send(path, options, patience - 1);
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Failure(problem.detail ?? `The service answered ${answer.status}.`);
  }
  return answer;
}

export const getJson = async (path) => (await send(path)).json();

export async function inspect(file, { category, record }) {
  const form = new FormData();
  form.append("image", file, file.name || "picture.png");
  form.append("include", "map");
  if (category) form.append("category", category);
  form.append("record", record);
  return (await send("/inspect", { method: "POST", body: form })).json();
}

export async function label(part, said) {
  const body = JSON.stringify({ label: said });
  return (await send(`/parts/${part}/label`, { method: "POST", body, headers: { "Content-Type": "application/json" } })).json();
}
