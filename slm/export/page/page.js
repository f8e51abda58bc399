// The page: buttons and settings to the engine, its tokens to coloured text with their alternatives.
"use strict";

const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const world = data.world && new StoryWorld(data.world);
const article = find("text"), tip = find("tip"), status = find("status");
const MOST_BITS = 6; // of surprise: the full colour
const EXPECTED = { // the checker's tags in words
  template: "no sentence of this world goes on like this", end: "the story should end there", hero: "a name should stand there",
  friend: "another name should stand there",
};
const APART = 9; // milliseconds
let appears = 0;
let tokens = []; // as the engine describes them, each with its element
let decoder = new TextDecoder(), turn = 0, running = false, ended = true, pinned = false, hiding = 0;

// --- The engine ---

function bytesOf(base64) {
  const characters = atob(base64.trim()), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

// A function that sends orders to the engine: in a worker, or here where the browser has none for files.
function startEngine() {
  const bytes = bytesOf(find("weights").textContent);
  find("weights").remove();
  const model = { model: data.model, tokenizer: data.tokenizer, eosFirst: data.eosFirst };
  const here = () => {
    const engine = new Engine(model, bytes, received);
    return (message) => engine.receive(message);
  };
  try {
    const address = URL.createObjectURL(new Blob([find("engine").textContent], { type: "text/javascript" }));
    const worker = new Worker(address);
    let send = (message) => worker.postMessage(message), sent = null;
    worker.onmessage = ({ data }) => received(data);
    worker.onerror = () => {
      if (turn === answered) throw new Error("the engine stopped");
      send = here(); // blocked when it should have started
      if (sent) send(sent);
    };
    worker.postMessage({ model, bytes });
    return (message) => send((sent = message));
  } catch {
    return here();
  }
}

let answered = 0; // the last turn that the engine has answered
const order = startEngine();

function received(message) {
  answered = turn;
  if (message.kind === "checked") return showCheck(message);
  if (message.turn !== turn) return;
  if (message.kind === "tokens") message.tokens.forEach(append);
  if (message.kind === "done") finish(message);
}

// --- Orders ---

function number(id) {
  const field = find(id), value = field.valueAsNumber;
  return Number.isFinite(value) && value > 0 && field.checkValidity() ? value : null;
}

function settings() {
  const filters = { topK: number("topK"), topP: number("topP"), minP: number("minP") };
  return { temperature: find("temperature").valueAsNumber, seed: find("seed").valueAsNumber || 0, ...filters };
}

function send(message) {
  close();
  turn++;
  [running, ended] = [true, false];
  show();
  find("verdict").hidden = true;
  status.textContent = "writing …";
  order({ turn, settings: settings(), tokens: find("tokens").valueAsNumber, ...message });
}

function tell() {
  truncate(0);
  send({ order: "tell", text: find("start").value });
}

// Another token in the place of one, from which the text goes on.
function replace(token, { id, piece, share, rank }) {
  truncate(tokens.indexOf(token));
  append({ ...token, id, piece, share, rank, end: id === data.tokenizer.eos, given: false, span: null });
  send({ order: "replace", place: token.place, id });
}

function finish({ reason, count, seconds }) {
  [running, ended] = [false, reason === "end"];
  const speed = seconds > 0.05 ? `, ${Math.round(count / seconds).toLocaleString("en")} per second` : "";
  status.textContent = `${count.toLocaleString("en")} pieces${speed}`;
  show();
  if (world) showVerdict(judge(world, textNow(), ended));
}

function show() {
  find("stop").hidden = !running;
  find("more").hidden = running;
  find("more").disabled = ended || !tokens.length;
  find("check").disabled = running;
}

// --- Tokens ---

// The text of a piece of bytes; `stream`: the characters that are complete with it.
const decode = (piece, stream) => stream.decode(fromBytes(piece), { stream: true });
const textNow = () => tokens.map((token) => token.text).join("");

function append(token) {
  token.text = decode(token.piece, decoder);
  tokens.push(token);
  if (!token.text && !token.end) return;
  const span = document.createElement("span");
  token.span = span;
  token.space = /^ (?=.)/s.test(token.text) ? document.createTextNode(" ") : ""; // outside of the coloured box
  span.className = "token new";
  span.classList.toggle("given", token.given);
  span.classList.toggle("end", token.end);
  span.textContent = token.end ? "the end" : token.text.slice(token.space ? 1 : 0);
  span.tabIndex = article.querySelector(".token") ? -1 : 0;
  const now = performance.now(); // the tokens appear one after the other, also if they come at once
  appears = Math.min(Math.max(appears + APART, now), now + 2500);
  span.style.setProperty("--delay", `${Math.round(appears - now)}ms`);
  if (token.share !== undefined) {
    const bits = -Math.log2(Math.max(token.share, 1e-30));
    span.style.setProperty("--surprise", Math.min(bits / MOST_BITS, 1).toFixed(3));
    span.setAttribute("aria-description", `probability ${percent(token.share)}`);
  }
  article.append(token.space, span);
}

function truncate(count) {
  for (const { span, space } of tokens.splice(count)) {
    span?.remove();
    if (space) space.remove();
  }
  decoder = new TextDecoder();
  for (const token of tokens) decode(token.piece, decoder);
  for (const token of tokens) token.span?.classList.remove("wrong", "new");
}

function percent(share) {
  if (share >= 0.9995) return "> 99.9 %";
  if (share >= 0.0995) return `${(100 * share).toFixed(0)} %`;
  return share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %";
}

// --- The checker ---

function showVerdict({ valid, prefix, sentences, error }) {
  const line = find("verdict");
  const wanted = EXPECTED[error] || `another word should stand there (${error})`;
  line.textContent = valid
    ? `✓ A complete story: all ${sentences} sentences follow the rules of its world.`
    : error === "more"
      ? `So far all follows the rules of its world (${sentences} whole sentences); the story has not ended yet.`
      : `✗ Not a story of its world: in sentence ${sentences + 1}, at the mark, ${wanted}.`;
  line.className = valid ? "good" : error === "more" ? "" : "bad";
  line.hidden = false;
  if (valid || error === "more") return;
  let end = 0;
  const wrong = tokens.find((token) => token.span && (end += token.text.length) > prefix) || tokens[tokens.length - 1];
  wrong?.span?.classList.add("wrong");
}

// --- The check against slm ---

function check() {
  find("checked").textContent = "checking …";
  order({ order: "check", turn: ++turn, proofs: data.proofs });
}

function showCheck({ equal, count, tokens, seconds, different }) {
  const speed = Math.round(tokens / seconds).toLocaleString("en");
  const line = `${equal} of ${count} texts are equal to those of PyTorch; ${speed} pieces per second in this browser.`;
  find("checked").textContent = different === null ? line : `${line} The first other one begins: ${different}`;
  Object.assign(find("checked").dataset, { equal, count, tokens, seconds: seconds.toFixed(3) });
}

// --- Start ---

for (const [name, value] of data.facts) {
  const title = document.createElement("dt"), content = document.createElement("dd");
  title.textContent = name;
  content.textContent = value;
  find("facts").append(title, content);
}
for (const output of document.querySelectorAll("output")) {
  const input = find(output.htmlFor[0]), copy = () => (output.textContent = input.value);
  input.addEventListener("input", copy);
  copy();
}
find("start").value = data.start;
find("start").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  tell();
});
find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  tell();
});
find("again").addEventListener("click", () => {
  find("seed").value = (find("seed").valueAsNumber || 0) + 1;
  tell();
});
find("more").addEventListener("click", () => send({ order: "more" }));
find("stop").addEventListener("click", () => order({ order: "stop" }));
find("check").addEventListener("click", check);
find("colours").addEventListener("change", ({ target }) => article.classList.toggle("colours", target.checked));
document.addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  if (running) order({ order: "stop" });
  close();
});
article.classList.add("colours");
if (location.hash === "#check") {
  find("about").open = true;
  check();
} else {
  tell();
}
