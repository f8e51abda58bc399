// What else could stand in the place of a token: by mouse, touch and keyboard. It uses the variables of page.js.
"use strict";

const LEAST = 0.001, FEW = 3; // less likely alternatives are left out, but not the first few

// A piece with what cannot be seen made visible.
function visible(piece, id) {
  const parts = document.createElement("span");
  const text = id === data.tokenizer.eos ? "" : new TextDecoder().decode(fromBytes(piece));
  for (const part of text.split(/([ \n\t])/).filter(Boolean)) {
    const sign = { " ": "·", "\n": "↵", "\t": "⇥" }[part];
    const element = document.createElement(sign ? "i" : "b");
    element.style.fontWeight = "inherit";
    element.textContent = sign || part;
    parts.append(element);
  }
  if (!text) parts.textContent = id === data.tokenizer.eos ? "the end" : "(nothing)";
  return parts;
}

function option(token, other) {
  const { id, piece, share } = other;
  const button = document.createElement("button"), amount = document.createElement("span");
  button.type = "button";
  button.style.setProperty("--share", share);
  button.classList.toggle("chosen", id === token.id);
  amount.textContent = percent(share);
  button.append(visible(piece, id), amount);
  button.onclick = () => replace(token, other);
  return button;
}

function open(token, pin = false) {
  clearTimeout(hiding);
  if (!token?.span || (pinned && !pin)) return;
  close();
  pinned = pin;
  token.span.classList.add("open");
  const line = document.createElement("p");
  const ordinal = token.rank === 1 ? "the most likely piece" : `place ${token.rank} of ${data.model.vocab_size.toLocaleString("en")}`;
  line.textContent = token.others ? `${percent(token.share)}: ${ordinal}` : "The model has not predicted this piece.";
  const others = (token.others || []).filter(({ share }, place) => place < FEW || share >= LEAST);
  const own = others.some(({ id }) => id === token.id) || !others.length ? [] : [token];
  tip.replaceChildren(line, ...[...others, ...own].map((other) => option(token, other)));
  tip.hidden = false;
  const box = token.span.getClientRects()[0], size = tip.getBoundingClientRect();
  const below = box.bottom + 6 + size.height < innerHeight || box.top < size.height + 12;
  tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - size.width - 8)) + scrollX}px`;
  tip.style.top = `${(below ? box.bottom + 6 : box.top - size.height - 6) + scrollY}px`;
}

function close() {
  clearTimeout(hiding);
  const opened = article.querySelector(".open");
  if (tip.contains(document.activeElement)) opened?.focus({ preventScroll: true });
  opened?.classList.remove("open");
  pinned = false;
  tip.hidden = true;
}

const tokenOf = (element) => tokens.find((token) => token.span && token.span === element);

function hideSoon() {
  clearTimeout(hiding);
  if (!pinned) hiding = setTimeout(close, 220);
}

article.addEventListener("mouseover", ({ target }) => open(tokenOf(target)));
article.addEventListener("mouseleave", hideSoon);
tip.addEventListener("mouseenter", () => clearTimeout(hiding));
tip.addEventListener("mouseleave", hideSoon);
article.addEventListener("click", ({ target }) => open(tokenOf(target), true));
article.addEventListener("focusin", ({ target }) => target.matches(":focus-visible") && open(tokenOf(target)));
document.addEventListener("pointerdown", ({ target }) => {
  if (!tip.contains(target) && !article.contains(target)) close();
});

// Arrow keys walk along the tokens, Enter opens the alternatives.
article.addEventListener("keydown", (event) => {
  const spans = [...article.querySelectorAll(".token")], place = spans.indexOf(document.activeElement);
  const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: spans.length - 1 }[event.key];
  if (event.key === "Enter" && place >= 0) {
    open(tokenOf(spans[place]), true);
    tip.querySelector("button")?.focus();
  } else if (next === undefined || place < 0 || !spans[next]) {
    return;
  } else {
    pinned = false;
    spans[place].tabIndex = -1;
    spans[next].tabIndex = 0;
    spans[next].focus();
  }
  event.preventDefault();
});
