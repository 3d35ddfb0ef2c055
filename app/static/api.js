// Talks to the service; waits and tries again where the service asks for it.

export const BASE = new URL("../", import.meta.url); // this file is served under static/
const TRIES = 6;
const KEY = "caption-api-key";
const sendable = (text) => /^[!-~]+$/.test(text ?? ""); // what a header can carry; fetch throws at the rest
let key = sessionStorage.getItem(KEY);
if (!sendable(key)) key = null;
let asking = null;

// Thrown with a message for people.
export class ApiError extends Error {
  constructor(message, problem = {}) {
    super(message);
    this.problem = problem;
  }
}

// The service's answer for one picture (a File or Blob).
export async function caption(picture, params = {}) {
  const url = new URL(`caption?${new URLSearchParams(params)}`, BASE);
  const type = picture.type.startsWith("image/") ? picture.type : "application/octet-stream";
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(url, { method: "POST", body: picture, headers: headers({ "Content-Type": type }) });
    } catch {
      if (!(await readable(picture))) throw new ApiError("The file cannot be read any more.");
      await back();
      continue;
    }
    if (response.ok) return response.json();
    if (response.status === 401 && (await askForKey())) continue;
    const busy = response.status === 429 || response.status === 503;
    if (!busy || attempt === TRIES) throw await problemOf(response);
    await sleep((Number(response.headers.get("Retry-After")) || attempt) * 1000 * (1 + 0.2 * Math.random()));
  }
}

// What the service says of its model and limits; null where it does not.
export async function about() {
  try {
    const response = await fetch(new URL("model", BASE), { headers: headers() });
    return response.ok ? response.json() : null;
  } catch {
    return null;
  }
}

const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

// Until the service answers again: whoever waits, it is asked once every few seconds. `events` tells of it.
export const events = new EventTarget();
let waiting = null;

function back() {
  waiting ??= (async () => {
    events.dispatchEvent(new Event("lost"));
    for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
      await sleep(wait);
      const response = await fetch(new URL("health/ready", BASE), { cache: "no-store" }).catch(() => null);
      if (response?.ok) break;
    }
    waiting = null;
    events.dispatchEvent(new Event("found"));
  })();
  return waiting;
}

const headers = (more = {}) => (key ? { ...more, Authorization: `Bearer ${key}` } : more);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function problemOf(response) {
  const problem = await response.json().catch(() => ({}));
  const detail = problem.detail ?? `The service answered ${response.status} ${response.statusText}`.trim();
  return new ApiError(detail.charAt(0).toUpperCase() + detail.slice(1), problem);
}

// Asks once for however many pictures are waiting; false where nobody wants to give a key.
function askForKey() {
  const dialog = document.querySelector("#key-dialog");
  if (!dialog) return Promise.resolve(false);
  const input = dialog.querySelector("input");
  input.oninput = () => input.setCustomValidity(!input.value || sendable(input.value.trim()) ? "" : "A key has no spaces, accents or other alphabets.");
  asking ??= new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      asking = null;
      key = dialog.returnValue === "use" ? input.value.trim() : null;
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
      resolve(Boolean(key));
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}
