// Text to token ids and back: the tokenizers of slm/tokenizers. Pieces are strings with a character per UTF-8 byte.
"use strict";

const SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // Unicode's white space
const TAIL = `[${SPACES}]+(?![^${SPACES}])|[${SPACES}]+`;
const PATTERNS = { // how a text is cut into words; merges never cross their borders
  gpt2: `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACES}\\p{L}\\p{N}]+|${TAIL}`,
  gpt4: `'(?:[sdmtſSDMT]|[lL]{2}|[vV][eE]|[rR][eE])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|` +
    ` ?[^${SPACES}\\p{L}\\p{N}]+[\\r\\n]*|[${SPACES}]*[\\r\\n]|${TAIL}`,
};
const FIRST_BYTE = 4; // of SentencePiece: the ids of the bytes 0 to 255 follow the control ids
const LOW_LINE = "\xe2\x96\x81"; // U+2581, with which SentencePiece writes a space: a literal one becomes bytes

const toBytes = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
const fromBytes = (piece) => Uint8Array.from(piece, (byte) => byte.charCodeAt(0));
const isSpace = (piece) => /^[\t-\r ]+$/.test(piece);
const splitBytes = (piece) => piece.match(/[\x00-\x7f]|[\xc0-\xff][\x80-\xbf]*/g) || []; // into characters

// Merges neighbours, those with the lowest rank first, of equal ranks from left to right. join(left, right) is
// [rank, symbol], or undefined for a pair that stays.
function merge(symbols, join) {
  symbols = [...symbols];
  for (;;) {
    let best, place;
    for (let i = 0; i + 1 < symbols.length; i++) {
      const joined = join(symbols[i], symbols[i + 1]);
      if (joined && !(best && best[0] <= joined[0])) [best, place] = [joined, i];
    }
    if (!best) return symbols;
    symbols.splice(place, 2, best[1]);
  }
}

class Tokenizer {
  constructor(data) {
    Object.assign(this, data);
    let at = 0;
    const all = atob(data.pieces);
    this.pieces = Array.from(atob(data.lengths), (length) => all.slice(at, (at += length.charCodeAt(0))));
    this.ids = new Map();
    this.pieces.forEach((piece, id) => piece && id >= (data.first || 0) && !this.ids.has(piece) && this.ids.set(piece, id));
    this.longest = Math.max(...this.pieces.map((piece) => piece.length), 0);
    if (data.scores) this.scores = new Float32Array(fromBytes(atob(data.scores)).buffer);
    if (data.pattern) this.pattern = new RegExp(PATTERNS[data.pattern], "gu");
    this.merges = new Map();
    (data.merges || []).forEach(([left, right, id], rank) => {
      const pair = `${left} ${right}`;
      if (!this.merges.has(pair)) this.merges.set(pair, [rank, id]);
    });
  }

  encode(text) {
    return this[`encode_${this.kind}`](text);
  }

  encode_bytes(text) {
    return [...new TextEncoder().encode(text)];
  }

  encode_characters(text) {
    return Array.from(text, (character) => this.ids.get(toBytes(character)) ?? 1);
  }

  encode_bpe(text) {
    const byte = (piece) => this.ids.get(piece);
    const join = (left, right) => this.merges.get(`${left} ${right}`);
    return (text.match(this.pattern) || []).flatMap((word) => merge(Array.from(toBytes(word), byte), join));
  }

  encode_ranks(text) {
    const join = (left, right) => this.ids.has(left + right) && [this.ids.get(left + right), left + right];
    const ids = (word) => (this.ids.has(word) ? [word] : merge(word, join)).map((piece) => this.ids.get(piece));
    return (text.match(this.pattern) || []).flatMap((word) => ids(toBytes(word)));
  }

  encode_sentencepiece(text) {
    const part = this.algorithm === "unigram" ? (bytes) => this.unigram(bytes) : (bytes) => this.wordwise(bytes);
    const found = [];
    toBytes(text).split(LOW_LINE).forEach((bytes, place) => {
      found.push(...(place ? this.fallback(LOW_LINE) : []), ...part(bytes));
    });
    return found;
  }

  fallback(piece) {
    return Array.from(piece, (byte) => FIRST_BYTE + byte.charCodeAt(0));
  }

  wordwise(bytes) {
    const join = (left, right) => {
      const id = this.ids.get(left + right);
      return id !== undefined && [-this.scores[id], left + right];
    };
    const ids = (piece) => (this.ids.has(piece) ? [this.ids.get(piece)] : this.fallback(piece));
    return bytes.split(/(?= )/).flatMap((word) => merge(splitBytes(word), join).flatMap(ids));
  }

  // The most probable pieces; sums in float32, as in SentencePiece, on which ties depend.
  unigram(bytes) {
    const best = new Array(bytes.length + 1).fill(null);
    best[0] = { score: 0 };
    const offer = (from, to, score, ids) => {
      score = Math.fround(best[from].score + score);
      if (!best[to] || score > best[to].score) best[to] = { score, from, ids };
    };
    let from = 0;
    for (const character of splitBytes(bytes)) {
      for (let to = from + 1; to <= Math.min(bytes.length, from + this.longest); to++) {
        const id = this.ids.get(bytes.slice(from, to));
        if (id !== undefined) offer(from, to, this.scores[id], [id]);
      }
      if (!this.ids.has(character)) offer(from, from + character.length, this.unknown, this.fallback(character));
      from += character.length;
    }
    const found = [];
    for (let at = bytes.length; at > 0; at = best[at].from) found.unshift(...best[at].ids);
    return found;
  }

  // { ids, rest }: what the model reads, and the bytes at the end of the prompt that its first tokens must spell. A
  // token often holds a space and the word after it, so a space at the end is left to the model.
  prompt(text, eosFirst) {
    const ids = this.encode(text);
    const before = eosFirst || !ids.length ? [this.eos] : [];
    let end = ids.length, rest = "", tail = "";
    if (/[\s\x1c-\x1f\x85]$/.test(text)) {
      for (let place = ids.length - 1; place >= 0; place--) {
        tail = this.pieces[ids[place]] + tail;
        if (!isSpace(tail) || tail.length >= this.longest) break;
        if (this.pieces.some((piece) => piece.length > tail.length && piece.startsWith(tail))) [end, rest] = [place, tail];
      }
    }
    const read = [...before, ...ids.slice(0, end)];
    return { ids: read.length ? read : [this.eos], rest };
  }

  spells(id, rest) {
    const piece = this.pieces[id];
    return piece !== "" && (piece.startsWith(rest) || rest.startsWith(piece));
  }
}
