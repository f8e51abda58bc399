// The page: buttons and settings to the engine, its tokens to coloured text with their alternatives.
"use strict";

const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const world = data.world && new StoryWorld(data.world);
const article = find("text"), status = find("status");
const EXPECTED = { // the checker's tags in words
  template: "no sentence of this world goes on like this", end: "the story should end there", hero: "a name should stand there",
  friend: "another name should stand there",
};
const APART = 9; // milliseconds between two tokens
const LEAST = 0.001, FEW = 3; // less likely alternatives are left out, but not the first few
let appears = 0;
let tokens = []; // as the engine describes them, each with its text and its elements
let decoder = new TextDecoder(), turn = 0, running = false, ended = true;

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
  const model = { model: data.model, tokenizer: data.tokenizer, eosFirst: data.eosFirst, stop: data.chat?.stop };
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
  alternatives.close();
  turn++;
  [running, ended] = [true, false];
  show();
  find("verdict").hidden = true;
  status.textContent = "writing …";
  order({ turn, settings: settings(), tokens: find("tokens").valueAsNumber, ...message });
}

function tell() {
  const { chat } = data, typed = find("start").value;
  truncate(0);
  send({ order: "tell", text: chat ? chat.user.trimStart() + typed.trim() + chat.assistant : typed });
}

// Another token in the place of one, from which the text goes on.
function replace(token, { id, piece, share, rank }) {
  truncate(tokens.indexOf(token));
  append({ ...token, id, piece, share, rank, end: id === data.tokenizer.eos, given: false });
  send({ order: "replace", place: token.place, id });
}

function finish({ reason, count, seconds }) {
  [running, ended] = [false, reason === "end"];
  const speed = seconds > 0.05 ? `, ${Math.round(count / seconds).toLocaleString("en")} per second` : "";
  status.textContent = `${count.toLocaleString("en")} pieces${speed}`;
  if (data.chat) endBefore(data.chat.stop);
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
  token.parts = token.text || token.end ? tokenParts(token.end ? null : token.text, token.share) : [];
  tokens.push(token);
  const now = performance.now(); // the tokens appear one after the other, also if they come at once
  appears = Math.min(Math.max(appears + APART, now), now + 2500);
  const span = token.parts[1];
  span?.classList.add("new");
  span?.classList.toggle("given", token.given);
  span?.style.setProperty("--delay", `${Math.round(appears - now)}ms`);
  article.append(...token.parts);
}

function truncate(count) {
  for (const { parts } of tokens.splice(count)) for (const part of parts) part.remove();
  decoder = new TextDecoder();
  for (const { piece, parts } of tokens) {
    decode(piece, decoder);
    parts[1]?.classList.remove("wrong", "new");
  }
}

// Drops the beginning of the next turn, with which an answer may end.
function endBefore(stop) {
  let left = textNow().indexOf(stop);
  if (left < 0) return;
  const place = tokens.findIndex(({ text }) => (left -= text.length) < 0), last = tokens[place];
  truncate(place);
  if (left > -last.text.length) append({ ...last, piece: toBytes(last.text.slice(0, left)) });
}

const alternatives = new Alternatives(article, document.body, (span) => {
  const token = tokens.find(({ parts }) => parts.includes(span));
  const others = (token.others || []).filter(({ share }, place) => place < FEW || share >= LEAST);
  if (!others.some(({ id }) => id === token.id)) others.push(token);
  const options = others.map((other) => {
    const text = other.id === data.tokenizer.eos ? "the end" : decode(other.piece, new TextDecoder());
    return { text: text || "(nothing)", share: other.share, own: other.id === token.id, choose: () => replace(token, other) };
  });
  const place = token.rank === 1 ? "the most likely piece" : `place ${token.rank} of ${data.model.vocab_size.toLocaleString("en")}`;
  return token.others
    ? { line: `${percent(token.share)}: ${place}`, options }
    : { line: "The model has not predicted this piece.", options: [] };
});

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
  const wrong = tokens.find(({ text }) => (end += text.length) > prefix) || tokens[tokens.length - 1];
  wrong?.parts[1]?.classList.add("wrong");
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
  if (key === "Escape" && running) order({ order: "stop" });
});
article.classList.add("colours");
if (location.hash === "#check") {
  find("about").open = true;
  check();
} else if (data.start || !data.chat) {
  tell();
} else {
  show();
}
