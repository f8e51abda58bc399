// The model: a token id to the logits of the next one, with a cache of keys and values. The function of slm/model.py.
// Matrices have 8 bits per number and a scale per row; all else is float32.
"use strict";

class Matrix {
  constructor(rows, columns, numbers, scales) {
    Object.assign(this, { rows, columns, numbers, scales });
  }

  row(index, out) {
    const at = index * this.columns;
    for (let i = 0; i < this.columns; i++) out[i] = this.numbers[at + i] * this.scales[index];
    return out;
  }

  // out = W x + bias. Four rows at a time: each number of x is read once for them, and their sums grow independently.
  times(x, out, bias) {
    const { rows, columns, numbers, scales } = this;
    const whole = rows - (rows % 4);
    for (let row = 0; row < whole; row += 4) {
      const p = row * columns, q = p + columns, r = q + columns, s = r + columns;
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < columns; i++) {
        const value = x[i];
        a += numbers[p + i] * value;
        b += numbers[q + i] * value;
        c += numbers[r + i] * value;
        d += numbers[s + i] * value;
      }
      out[row] = a * scales[row];
      out[row + 1] = b * scales[row + 1];
      out[row + 2] = c * scales[row + 2];
      out[row + 3] = d * scales[row + 3];
    }
    for (let row = whole; row < rows; row++) {
      let sum = 0;
      for (let i = 0, p = row * columns; i < columns; i++) sum += numbers[p + i] * x[i];
      out[row] = sum * scales[row];
    }
    if (bias) for (let row = 0; row < rows; row++) out[row] += bias[row];
    return out;
  }
}

// The weights by name: from [name, rows, columns] a Matrix, its numbers and then its scales; from [name, length] floats.
function readWeights(table, bytes) {
  const weights = {};
  let at = 0;
  const floats = (length) => new Float32Array(bytes.buffer.slice(bytes.byteOffset + at, bytes.byteOffset + (at += 4 * length)));
  for (const [name, rows, columns] of table) {
    if (columns === undefined) {
      weights[name] = floats(rows);
    } else {
      const numbers = new Int8Array(bytes.buffer, bytes.byteOffset + at, rows * columns);
      at += rows * columns;
      weights[name] = new Matrix(rows, columns, numbers, floats(rows));
    }
  }
  return weights;
}

// To ten digits, more than float32 has: all terms have the same sign, so none is lost.
function erf(x) {
  const square = x * x;
  if (square > 36) return Math.sign(x);
  let sum = x, term = x;
  for (let n = 1; Math.abs(term) > 1e-11 * Math.abs(sum); n++) sum += term *= (2 * square) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-square) * sum;
}

const gelu = (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2));
const ACTIVATIONS = {
  gelu,
  geglu: gelu,
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
  relu2: (x) => (x > 0 ? x * x : 0),
  swiglu: (x) => x / (1 + Math.exp(-x)),
};

// In place: `size` numbers of x, the first of them at `from`.
function rmsNorm(x, from, size, gain, eps) {
  let squares = 0;
  for (let i = from; i < from + size; i++) squares += x[i] * x[i];
  const scale = 1 / Math.sqrt(squares / size + eps);
  for (let i = 0; i < size; i++) x[from + i] *= scale * gain[i];
}

function layerNorm(x, gain, bias, eps) {
  let sum = 0, squares = 0;
  for (const value of x) sum += value;
  const mean = sum / x.length;
  for (const value of x) squares += (value - mean) ** 2;
  const scale = 1 / Math.sqrt(squares / x.length + eps);
  for (let i = 0; i < x.length; i++) x[i] = (x[i] - mean) * scale * gain[i] + (bias ? bias[i] : 0);
}

class GPT {
  constructor(config, weights) {
    Object.assign(this, { config, weights });
    const { depth, width, context, heads, kv_heads: kvHeads, head_dim: size, hidden, vocab_size: vocabulary } = config;
    const cache = () => Array.from({ length: depth }, () => new Float32Array(context * kvHeads * size));
    this.keys = cache();
    this.values = cache();
    this.length = 0; // positions in the cache
    this.last = null; // the token at the last of them
    const floats = (length) => new Float32Array(length);
    Object.assign(this, { x: floats(width), y: floats(width), attended: floats(width), embedding: floats(width) });
    Object.assign(this, { qkv: floats((heads + 2 * kvHeads) * size), scores: floats(context) });
    Object.assign(this, { gate: floats(hidden), up: floats(hidden), logits: floats(vocabulary) });
    Object.assign(this, { gates: floats(kvHeads), tokenValues: floats(kvHeads * size) });
  }

  // Reads a token at the next position; returns the logits of the one after it, in an array that the next call reuses.
  read(token) {
    const { config, weights, x, y } = this;
    weights["tokens.weight"].row(token, x);
    if (config.positions === "learned") {
      weights["positions.weight"].row(this.length, y);
      for (let i = 0; i < x.length; i++) x[i] += y[i];
    }
    const pairs = weights["bigrams.weight"];
    if (pairs) {
      const before = this.length ? this.last : config.vocab_size;
      pairs.row((token + 1000003 * before) % pairs.rows, y);
      for (let i = 0; i < x.length; i++) x[i] += y[i];
    }
    this.last = token;
    this.embedding.set(x);
    for (let layer = 0; layer < config.depth; layer++) this.block(layer, token);
    this.length++;
    this.norm(x, "norm");
    return this.readOut(x);
  }

  readOut(x) {
    const { weights, logits } = this;
    const softcap = this.config.logit_softcap;
    (weights["head.weight"] || weights["tokens.weight"]).times(x, logits, weights["head.bias"]);
    if (softcap) for (let i = 0; i < logits.length; i++) logits[i] = softcap * Math.tanh(logits[i] / softcap);
    return logits;
  }

  block(layer, token) {
    const { x, y, embedding, weights } = this;
    const name = `blocks.${layer}`;
    if (weights.residual_scales) {
      const own = weights.residual_scales[layer], first = weights.embedding_scales[layer];
      for (let i = 0; i < x.length; i++) x[i] = own * x[i] + first * embedding[i];
    }
    y.set(x);
    this.norm(y, `${name}.attention_norm`);
    this.attention(layer, `${name}.attention`, token);
    for (let i = 0; i < x.length; i++) x[i] += y[i];
    y.set(x);
    this.norm(y, `${name}.mlp_norm`);
    this.mlp(`${name}.mlp`);
    for (let i = 0; i < x.length; i++) x[i] += y[i];
  }

  norm(x, name) {
    const { config, weights } = this;
    const gain = weights[`${name}.weight`];
    if (config.norm === "rmsnorm") rmsNorm(x, 0, x.length, gain, config.norm_eps);
    else layerNorm(x, gain, weights[`${name}.bias`], config.norm_eps);
  }

  linear(name, x, out) {
    return this.weights[`${name}.weight`].times(x, out, this.weights[`${name}.bias`]);
  }

  mlp(name) {
    const { y, gate, up, config } = this;
    const activation = ACTIVATIONS[config.mlp];
    this.linear(`${name}.up`, y, up);
    if (this.weights[`${name}.gate.weight`]) {
      this.linear(`${name}.gate`, y, gate);
      for (let i = 0; i < up.length; i++) up[i] *= activation(gate[i]);
    } else {
      for (let i = 0; i < up.length; i++) up[i] = activation(up[i]);
    }
    this.linear(`${name}.out`, up, y);
  }

  // Reads y, writes y. A query sees the keys of its window, its own included.
  attention(layer, name, token) {
    const { config, y, qkv, attended } = this;
    const { heads, kv_heads: kvHeads, head_dim: size } = config;
    this.linear(`${name}.qkv`, y, qkv);
    if (this.weights[`${name}.value_gate.weight`]) this.addTokenValues(name, token);
    for (let head = 0; head < heads + kvHeads; head++) {
      const gain = this.weights[`${name}.${head < heads ? "query" : "key"}_norm.weight`];
      if (gain) rmsNorm(qkv, head * size, size, gain, config.norm_eps);
      if (config.positions === "rope") this.rotate(head * size);
    }
    const stride = kvHeads * size, keys = this.keys[layer], values = this.values[layer];
    keys.set(qkv.subarray(heads * size, heads * size + stride), this.length * stride);
    values.set(qkv.subarray(heads * size + stride), this.length * stride);
    const window = config.windows[layer];
    const first = window ? Math.max(0, this.length - window + 1) : 0;
    attended.fill(0);
    for (let head = 0; head < heads; head++) {
      this.attend(head * size, Math.floor((head * kvHeads) / heads) * size, stride, keys, values, first);
    }
    this.linear(`${name}.out`, attended, y);
  }

  // One head: its query at `from` of qkv, its keys and values at `to` of each cached position.
  attend(from, to, stride, keys, values, first) {
    const { qkv, scores, attended } = this;
    const size = this.config.head_dim, scale = 1 / Math.sqrt(size);
    let largest = -Infinity, total = 0;
    for (let position = first; position <= this.length; position++) {
      let sum = 0;
      for (let i = 0, at = position * stride + to; i < size; i++) sum += qkv[from + i] * keys[at + i];
      scores[position] = sum * scale;
      largest = Math.max(largest, scores[position]);
    }
    for (let position = first; position <= this.length; position++) {
      total += scores[position] = Math.exp(scores[position] - largest);
    }
    for (let position = first; position <= this.length; position++) {
      const share = scores[position] / total;
      for (let i = 0, at = position * stride + to; i < size; i++) attended[from + i] += share * values[at + i];
    }
  }

  // Turns each pair (i, i + D/2) of the head that begins at `from` by the angle of this position.
  rotate(from) {
    const { qkv, weights } = this;
    const half = this.config.head_dim / 2;
    for (let i = from, pair = 0; pair < half; i++, pair++) {
      const angle = Math.fround(this.length * weights.frequencies[pair]);
      const cos = Math.cos(angle), sin = Math.sin(angle), left = qkv[i], right = qkv[i + half];
      qkv[i] = left * cos - right * sin;
      qkv[i + half] = right * cos + left * sin;
    }
  }

  addTokenValues(name, token) {
    const { config, y, qkv, gates, tokenValues } = this;
    const size = config.head_dim;
    const gate = this.weights[`${name}.value_gate.weight`];
    gate.times(y.subarray(0, gate.columns), gates);
    this.weights[`${name}.value_embedding.weight`].row(token, tokenValues);
    const values = qkv.subarray((config.heads + config.kv_heads) * size);
    for (let i = 0; i < tokenValues.length; i++) {
      values[i] += (3 / (1 + Math.exp(-gates[Math.floor(i / size)]))) * tokenValues[i];
    }
  }
}
