// The checker of storyworld: whether its grammar derives a text, and otherwise the first error. As
// slm/corpora/storyworld: grammar.py, world.py, parser.py and checker.py.
"use strict";

const NAMED = { hero: "kind", friend: "kind2" }; // variables with a name -> the variable of their kind
const PRONOUNS = new Set(["he", "He", "him", "his", "His"]);
const SLOT = /\{(~?\w+)(?:\.(\w+))?\}/g;
const listName = (variable) => variable.replace(/^~+/, "").replace(/\d+$/, "");
const pool = (variable) => (variable in NAMED ? "name" : listName(variable));

function choice(items, weights) {
  weights = weights || items.map(() => 1);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return { items, shares: weights.map((weight) => weight / total) };
}

// A form of a sentence in pieces: texts, and { variable, form }.
function template(text, key) {
  const pieces = [];
  let end = 0, temporary = 0;
  for (const found of text.matchAll(SLOT)) {
    let [, variable, form = ""] = found;
    if (PRONOUNS.has(variable)) [variable, form] = ["hero", variable];
    else if (variable.startsWith("~")) variable += temporary++;
    pieces.push(text.slice(end, found.index), { variable, form });
    end = found.index + found[0].length;
  }
  return { key, pieces: [...pieces, text.slice(end)].filter((piece) => piece !== "") };
}

class StoryWorld {
  constructor({ lists, frame, details, plots, detailCount, slope }) {
    const sentences = ([title, texts]) => {
      const space = title === "opening" ? "" : " ";
      return [title, texts.map((lines) => choice(lines.map((line) => template(space + line, title))))];
    };
    const all = (titles) => new Map(titles.map(sentences));
    Object.assign(this, { lists, frame: all(frame), details: all(details), plots: all(plots), detailCount, slope });
  }

  *program() {
    for (const title of ["opening", "possession", "friend", "going"]) yield this.frame.get(title)[0];
    let unused = [...this.details.keys()];
    for (let i = 0; i < this.detailCount; i++) {
      const used = yield this.oneOf(unused.map((title) => this.details.get(title)[0]));
      unused = unused.filter((title) => title !== used);
    }
    const plot = yield this.oneOf([...this.plots.values()].map((sentences) => sentences[0]));
    const rest = this.plots.get(plot).slice(1);
    yield* rest.slice(0, -1);
    yield this.frame.get("home")[0];
    yield rest[rest.length - 1];
  }

  oneOf(sentences) {
    return choice(sentences.flatMap(({ items }) => items), sentences.flatMap(({ shares }) => shares));
  }

  // The words of an unbound variable: no two variables of a pool share a word.
  words(variable, bindings) {
    const own = pool(variable);
    const taken = new Set(Object.keys(bindings).filter((other) => pool(other) === own).map((other) => bindings[other][""]));
    const ranked = this.list(variable, bindings).map((word, rank) => [word, (rank + 3) ** -this.slope]);
    const free = ranked.filter(([word]) => !taken.has(word[""]));
    return choice(free.map(([word]) => word), free.map(([, weight]) => weight));
  }

  list(variable, bindings) {
    if (!(variable in NAMED)) return this.lists[pool(variable)];
    const { girl, boy } = this.lists, kind = bindings[NAMED[variable]][""];
    const both = girl.slice(0, boy.length).flatMap((name, rank) => [name, boy[rank]]);
    return { girl, boy }[kind] || both;
  }
}

// { complete, end, sentences, expected }: whether the text is a story, the length of the longest prefix that some story
// begins with, the complete sentences in it, and the most probable tag after it.
function parse(world, text) {
  let complete = false, furthest = 0, sentences = 0, expected = new Map();
  const pending = [[]];
  const reached = (end, count, tag, share) => {
    if (end > furthest) [furthest, sentences, expected] = [end, count, new Map()];
    if (end === furthest && tag) expected.set(tag, (expected.get(tag) || 0) + share);
  };
  while (pending.length) {
    const parsed = pending.pop();
    const start = parsed.length ? parsed[parsed.length - 1].end : 0;
    const program = world.program(), bindings = {};
    let next = program.next();
    for (const sentence of parsed) {
      for (const [name, word] of Object.entries(sentence.bindings)) if (!name.startsWith("~")) bindings[name] = word;
      next = program.next(sentence.key);
    }
    if (next.done) {
      if (start >= furthest) {
        [furthest, sentences, expected] = [start, parsed.length, new Map([["end", 1]])];
        complete = complete || start === text.length;
      }
      continue;
    }
    const found = [];
    match(world, next.value, text, start, bindings, found, (end, tag, share) => reached(end, parsed.length, tag, share));
    for (const sentence of found.reverse()) pending.push([...parsed, sentence]);
  }
  const likely = [...expected].reduce((best, entry) => (entry[1] > best[1] ? entry : best), ["", 0]);
  return { complete, end: furthest, sentences, expected: complete ? "" : likely[0] };
}

// All complete parses of one sentence; `reached` receives each partial match.
function match(world, { items, shares }, text, start, bindings, found, reached) {
  const follow = (pieces, end, share, bindings, key) => {
    if (!pieces.length) {
      found.push({ end, bindings, key });
      return;
    }
    const [piece, ...rest] = pieces;
    const tag = typeof piece === "string" ? "template" : listName(piece.variable);
    for (const [option, probability, bound] of options(world, piece, bindings)) {
      const length = commonPrefix(option, text, end);
      const whole = length === option.length;
      reached(end + length, whole ? "" : tag, share * probability);
      if (whole) follow(rest, end + length, share * probability, bound, key);
    }
  };
  items.forEach(({ pieces, key }, index) => follow(pieces, start, shares[index], bindings, key));
}

function options(world, piece, bindings) {
  if (typeof piece === "string") return [[piece, 1, bindings]];
  const { variable, form } = piece;
  if (variable in bindings) return [[bindings[variable][form], 1, bindings]];
  const { items, shares } = world.words(variable, bindings);
  return items.map((word, index) => [word[form], shares[index], { ...bindings, [variable]: word }]);
}

function commonPrefix(option, text, start) {
  let length = 0;
  while (length < option.length && option[length] === text[start + length]) length++;
  return length;
}

// { valid, prefix, sentences, error }; `finished`: the text ended by itself.
function judge(world, text, finished) {
  const { complete, end, sentences, expected } = parse(world, text);
  const valid = finished && complete;
  const cutOff = !finished && end === text.length;
  return { valid, prefix: end, sentences, error: valid ? "" : cutOff ? "more" : expected };
}
