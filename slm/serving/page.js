// Draws the stories of ui=web. `element`, `props`, `trigger` and `watch` are given by Gradio. All text goes in as text.
const legend = element.querySelector(".legend");
const stories = element.querySelector(".stories");
const rivals = element.querySelector(".rivals");
const hint = element.querySelector(".hint");
const STEPS = [1, 0.5, 0.2, 0.05, 0.01];

function make(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

// From no colour at probability 1 to the full one at 1 in 200.
function strength(p) {
  return Math.min(1, -Math.log2(Math.max(p, 1e-6)) / Math.log2(200)).toFixed(2);
}

function percent(p) {
  const value = 100 * p;
  return value < 0.001 ? "< 0.001 %" : Number(value.toPrecision(value < 10 ? 1 : 2)) + " %";
}

function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");
}

// The white space before a word is not coloured. An end of a line and the end of the text are signs of the style sheet.
function token(row, story, place) {
  const [text, p, chosen] = row;
  const word = text.trimStart();
  const made = make("span", "token", word || text.replaceAll("\n", ""));
  if (chosen) made.classList.add("chosen");
  if (!text || (!word && text.includes("\n"))) made.dataset.sign = text ? "↵" : "end";
  made.style.setProperty("--strength", strength(p));
  made.title = percent(p) + ": click for other tokens";
  made.dataset.story = story;
  made.dataset.place = place;
  return word ? [text.slice(0, text.length - word.length), made] : [made, text.replaceAll(/[^\n]/g, "")];
}

function column(story, number) {
  const made = make("article", "story");
  made.append(make("h3", "", story.title));
  const text = make("p", "text");
  text.append(make("span", "prompt", story.prompt));
  let position = 0;
  story.tokens.forEach((row, place) => {
    const parts = token(row, number, place);
    position += row[0].length;
    if (story.error !== null && position > story.error && row[0]) {
      parts.forEach((part) => part.classList?.add("wrong"));
    }
    text.append(...parts);
  });
  made.append(text);
  if (story.verdict) made.append(make("p", story.good ? "verdict good" : "verdict bad", story.verdict));
  made.append(make("p", "facts", story.facts));
  return made;
}

function draw() {
  const shown = props.value || [];
  legend.hidden = !shown.length;
  hint.hidden = shown.length;
  stories.replaceChildren(...shown.map(column));
}

function close() {
  rivals.hidden = true;
}

function open(target) {
  const { story, place } = target.dataset;
  const row = props.value[story].tokens[place];
  const list = row[4].map(([id, text, p]) => {
    const button = make("button", id === row[3] ? "rival own" : "rival");
    button.style.setProperty("--share", p);
    button.append(make("span", "", visible(text)), make("span", "share", percent(p)));
    button.onclick = () => {
      close();
      trigger("choose", { story: Number(story), place: Number(place), token: id });
    };
    return button;
  });
  if (!row[4].some(([id]) => id === row[3])) {
    const own = make("button", "rival own");
    own.disabled = true;
    own.append(make("span", "", visible(row[0])), make("span", "share", percent(row[1])));
    list.push(own);
  }
  rivals.replaceChildren(make("p", "", "Go on with another token:"), ...list);
  rivals.hidden = false;
  const place_of = target.getClientRects()[0], frame = element.getBoundingClientRect();
  const left = Math.min(place_of.left - frame.left, frame.width - rivals.offsetWidth - 8);
  rivals.style.left = Math.max(0, left) + "px";
  rivals.style.top = place_of.bottom - frame.top + 4 + "px";
}

legend.append("probability of each token: ");
STEPS.forEach((p) => {
  const step = make("span", "token", p);
  step.style.setProperty("--strength", strength(p));
  legend.append(step);
});
element.addEventListener("click", (event) => {
  if (event.target.matches(".stories .token")) open(event.target);
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".rivals, .stories .token")) close();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") close();
});
watch("value", draw);
draw();
