// Tokens coloured by probability, and what else could stand in the place of each: by mouse, touch and keyboard. For
// ui=web and format=page. Texts become text nodes, never HTML.
"use strict";

const MOST_BITS = 6; // of surprise: the full colour
const SIGNS = new Map([[" ", "·"], ["\n", "↵"], ["\t", "⇥"]]);

function make(tag, kind, ...content) {
  const made = document.createElement(tag);
  made.className = kind;
  made.append(...content);
  return made;
}

function percent(share) {
  if (share >= 0.9995) return "> 99.9 %";
  if (share >= 0.0995 && share < 0.995) return `${(100 * share).toFixed(0)} %`;
  return share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %";
}

// [what stands before it, the token]: the white space before a word is not coloured. An end of a line and the end of the
// text, which is null, are signs of the style sheet. `share` is undefined for a token that the model has not predicted.
function tokenParts(text, share) {
  const word = (text ?? "").trimStart(), space = word ? text.slice(0, text.length - word.length) : "";
  const span = make("span", "token", word || (text ?? ""));
  span.tabIndex = -1;
  if (text === null || (!word && text.includes("\n"))) span.dataset.sign = text === null ? "end" : SIGNS.get("\n");
  if (share !== undefined) {
    span.style.setProperty("--surprise", Math.min(-Math.log2(share) / MOST_BITS, 1).toFixed(3));
    span.setAttribute("aria-description", `probability ${percent(share)}`);
  }
  return [document.createTextNode(space), span];
}

// The list beside the token that a reader points at; a click or Enter keeps it open. describe(token) is { line, options:
// [{ text, share, own, choose }] }.
class Alternatives {
  constructor(area, parent, describe) {
    Object.assign(this, { area, describe, opened: null, pinned: false, hiding: 0 });
    this.tip = make("div", "alternatives");
    this.tip.setAttribute("role", "group");
    this.tip.setAttribute("aria-label", "What else could stand here");
    this.tip.hidden = true;
    parent.append(this.tip);
    area.tabIndex = 0;
    const hideSoon = () => {
      clearTimeout(this.hiding);
      if (!this.pinned) this.hiding = setTimeout(() => this.close(), 220);
    };
    area.addEventListener("mouseover", ({ target }) => this.open(target, false));
    area.addEventListener("mouseleave", hideSoon);
    this.tip.addEventListener("mouseenter", () => clearTimeout(this.hiding));
    this.tip.addEventListener("mouseleave", hideSoon);
    area.addEventListener("click", ({ target }) => this.open(target, true));
    area.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("pointerdown", ({ target }) => {
      if (!this.tip.contains(target) && !area.contains(target)) this.close();
    });
    document.addEventListener("keydown", ({ key }) => key === "Escape" && this.close());
  }

  open(token, pin) {
    clearTimeout(this.hiding);
    if (!token.matches(".token") || (this.pinned && !pin)) return;
    this.close();
    this.pinned = pin;
    this.mark(token);
    const { tip } = this, { line, options } = this.describe(token);
    tip.replaceChildren(make("p", "", line), ...options.map((option) => this.button(option)));
    tip.hidden = false;
    const box = token.getClientRects()[0], size = tip.getBoundingClientRect();
    const frame = tip.offsetParent.getBoundingClientRect();
    const below = box.bottom + 6 + size.height < innerHeight || box.top < size.height + 12;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - size.width - 8));
    tip.style.left = `${left - frame.left}px`;
    tip.style.top = `${(below ? box.bottom + 6 : box.top - size.height - 6) - frame.top}px`;
  }

  button({ text, share, own, choose }) {
    const shown = text.split(/([ \n\t])/).map((part) => (SIGNS.has(part) ? make("i", "", SIGNS.get(part)) : part));
    const button = make("button", own ? "own" : "", make("span", "", ...shown), make("span", "", percent(share)));
    button.type = "button";
    button.style.setProperty("--share", share);
    button.onclick = () => {
      this.close();
      choose();
    };
    return button;
  }

  // The token that the list belongs to, also after it was drawn anew; null if it is gone.
  mark(token) {
    this.opened = token;
    token?.classList.add("open");
  }

  close() {
    clearTimeout(this.hiding);
    if (this.tip.contains(document.activeElement)) this.opened?.focus({ preventScroll: true });
    this.opened?.classList.remove("open");
    Object.assign(this, { opened: null, pinned: false });
    this.tip.hidden = true;
  }

  // Arrow keys walk along the tokens, Enter opens the list.
  key(event) {
    const tokens = [...this.area.querySelectorAll(".token")], place = tokens.indexOf(document.activeElement);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (event.key === "Enter" && place >= 0) {
      this.open(tokens[place], true);
      this.tip.querySelector("button")?.focus();
    } else if (tokens[next]) {
      this.pinned = false;
      tokens[next].focus();
      this.open(tokens[next], false);
    } else {
      return;
    }
    event.preventDefault();
  }
}
