// Writes texts and reports each token. It runs in a worker, so that the page stays usable; where a browser refuses
// workers, in the page itself.
"use strict";

const SLICE = 15; // milliseconds of work between two looks at the messages
const ALTERNATIVES = 6;

// As slm/generation/reader.py: 0 until the context is full, then half a context later each time that it is full again.
function windowStart(end, context) {
  const half = context - Math.floor(context / 2);
  return Math.max(0, Math.ceil((end - context) / half) * half);
}

class Engine {
  constructor({ model, tokenizer, eosFirst, stop }, bytes, post) {
    this.gpt = new GPT(model, readWeights(model.weights, bytes));
    this.tokenizer = new Tokenizer(tokenizer);
    Object.assign(this, { eosFirst, stop: stop && toBytes(stop), post, context: model.context, turn: null });
    this.begin([this.tokenizer.eos]);
  }

  begin(ids, rest = "") {
    Object.assign(this, { ids, rest, first: ids.length, start: 0, ended: false });
    this.gpt.length = 0;
  }

  // { order: "tell" | "more" | "replace" | "stop" | "check", turn, ... }: the order before ends at its next pause.
  async receive(message) {
    const news = [];
    this.turn = message.order === "stop" ? null : message.turn;
    if (message.order === "stop") return;
    if (message.order === "check") return this.check(message);
    if (message.order === "tell") {
      const { ids, rest } = this.tokenizer.prompt(message.text, this.eosFirst);
      this.begin(ids, rest);
      const unread = windowStart(ids.length, this.context); // of a prompt longer than the context
      for (let place = 0; place <= unread; place++) news.push(this.described(place, null));
    } else if (message.order === "replace") {
      this.ids = [...this.ids.slice(0, message.place), message.id];
      Object.assign(this, { rest: "", ended: message.id === this.tokenizer.eos });
      this.gpt.length = Math.max(0, Math.min(this.gpt.length, message.place - this.start));
    }
    return this.tell(message, news);
  }

  // Posts the tokens of each slice, and at last why it ended: "end", "length" or "stopped".
  async tell({ turn, settings, tokens }, news) {
    const begun = performance.now();
    let count = 0, looked = begun, reason = this.ended ? "end" : "";
    const report = () => this.post({ kind: "tokens", turn, tokens: news.splice(0) });
    while (!reason) {
      const logits = this.step(news);
      if (performance.now() - looked > SLICE) {
        report();
        await pause();
        looked = performance.now();
        if (turn !== this.turn) reason = "stopped";
      }
      if (!logits || reason) continue;
      this.append(logits, settings, news);
      count++;
      if (this.ended) reason = "end";
      else if (count >= tokens) reason = "length";
    }
    report();
    this.post({ kind: "done", turn, reason, count, seconds: (performance.now() - begun) / 1000 });
  }

  // Reads one id; returns the logits once all are read, and describes the ids of the prompt that it predicts.
  step(news) {
    const start = windowStart(this.ids.length, this.context);
    if (start !== this.start) [this.start, this.gpt.length] = [start, 0];
    if (start + this.gpt.length === this.ids.length) this.gpt.length--; // only its logits are needed
    const logits = this.gpt.read(this.ids[start + this.gpt.length]);
    const next = start + this.gpt.length;
    if (next === this.ids.length) return logits;
    if (news && next < this.first) news.push(this.described(next, softmax(logits)));
    return null;
  }

  append(logits, settings, news) {
    const { tokenizer, ids } = this;
    const shares = news && softmax(logits);
    if (this.rest) logits = logits.map((logit, id) => (tokenizer.spells(id, this.rest) ? logit : -Infinity));
    const id = choose(logits, settings, uniform(settings.seed, ids.length));
    this.rest = this.rest.slice(tokenizer.pieces[id].length);
    ids.push(id);
    this.ended = id === tokenizer.eos || (this.stop !== undefined && this.said(this.stop.length).includes(this.stop));
    if (news) news.push(this.described(ids.length - 1, shares));
  }

  // The bytes of the last `count` tokens after the prompt, or more.
  said(count) {
    return this.ids.slice(Math.max(this.first, this.ids.length - count)).map((id) => this.tokenizer.pieces[id]).join("");
  }

  // The id at a place, with its own probability before all filters, and the most likely ones there.
  described(place, shares) {
    const id = this.ids[place], piece = (id) => this.tokenizer.pieces[id];
    const token = { place, id, piece: piece(id), given: place < this.first, end: id === this.tokenizer.eos && place > 0 };
    if (!shares) return token;
    const others = largest(shares, ALTERNATIVES).map((id, place) => ({ id, piece: piece(id), share: shares[id], rank: place + 1 }));
    const rank = shares.reduce((rank, share) => rank + (share > shares[id]), 1);
    return { ...token, share: shares[id], rank, others };
  }

  // Each proof is [prompt, its ids, ids of the greedy continuation], as slm found them. The text stays as it is.
  async check({ turn, proofs }) {
    const same = (left, right) => left.length === right.length && left.every((id, place) => id === right[place]);
    const { config, weights } = this.gpt;
    const trial = Object.assign(Object.create(Engine.prototype), this, { gpt: new GPT(config, weights) });
    let count = 0, equal = 0, tokens = 0, seconds = 0, different = null;
    for (const [text, read, expected] of proofs) {
      const begun = performance.now();
      const { ids, rest } = this.tokenizer.prompt(text, this.eosFirst);
      trial.begin(ids, rest);
      while (trial.ids.length < read.length + expected.length) {
        const logits = trial.step(null);
        if (logits) trial.append(logits, { temperature: 0, seed: 0 }, null);
      }
      count++;
      if (same(ids.slice(0, read.length), read) && same(trial.ids, [...read, ...expected])) equal++;
      else different = different || text;
      tokens += trial.ids.length;
      seconds += (performance.now() - begun) / 1000;
      await pause();
      if (turn !== this.turn) break; // by another order
    }
    this.post({ kind: "checked", equal, count, tokens, seconds, different });
  }
}

// Lets messages in; a timer would wait longer.
function pause() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      done();
    };
    port2.postMessage(null);
  });
}

if (typeof document === "undefined" && typeof postMessage === "function") {
  let engine = null;
  onmessage = ({ data }) => {
    if (data.bytes) engine = new Engine(data.model, data.bytes, (message) => postMessage(message));
    else engine.receive(data);
  };
}
