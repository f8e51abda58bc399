// From logits to the next id. The filters, and their order, are those of slm/generation/sampling.py.
"use strict";

function softmax(logits, temperature = 1) {
  const shares = new Float64Array(logits.length);
  let largest = -Infinity, total = 0;
  for (let i = 0; i < logits.length; i++) if (logits[i] > largest) largest = logits[i];
  for (let i = 0; i < logits.length; i++) total += shares[i] = Math.exp((logits[i] - largest) / temperature);
  for (let i = 0; i < logits.length; i++) shares[i] /= total;
  return shares;
}

// The `count` largest ids, the most likely first; of equal ones the lower id.
function largest(shares, count) {
  const found = [];
  for (let id = 0; id < shares.length; id++) {
    if (found.length === count && !(shares[id] > shares[found[count - 1]])) continue;
    let place = found.length;
    while (place > 0 && shares[id] > shares[found[place - 1]]) place--;
    found.splice(place, 0, id);
    if (found.length > count) found.pop();
  }
  return found;
}

// [ids, shares] that the settings leave; each filter may be null, which is off.
function kept(logits, { temperature, topK, topP, minP }) {
  const shares = softmax(logits, temperature);
  let ids = Array.from(shares.keys());
  if (topK || topP || minP) ids.sort((a, b) => shares[b] - shares[a] || a - b);
  if (topK) ids = ids.slice(0, topK);
  if (topP && topP < 1) {
    const total = ids.reduce((sum, id) => sum + shares[id], 0);
    let ahead = 0;
    ids = ids.filter((id) => {
      const keep = ahead < topP * total;
      ahead += shares[id];
      return keep;
    });
  }
  if (minP) ids = ids.filter((id, place) => place === 0 || shares[id] >= minP * shares[ids[0]]);
  return [ids, shares];
}

// A number in [0, 1) for the token at a position: a function of the two alone, so a text that was stopped goes on as if
// it had not been (mulberry32, a counter behind a hash).
function uniform(seed, position) {
  let state = (Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) + Math.imul(position + 1, 0x6d2b79f5)) | 0;
  state = Math.imul(state ^ (state >>> 15), state | 1);
  state ^= state + Math.imul(state ^ (state >>> 7), state | 61);
  return ((state ^ (state >>> 14)) >>> 0) / 4294967296;
}

// The next id; temperature 0 takes the most likely one.
function choose(logits, settings, random) {
  if (!settings.temperature) return largest(logits, 1)[0];
  const [ids, shares] = kept(logits, settings);
  let rest = random * ids.reduce((sum, id) => sum + shares[id], 0);
  for (const id of ids) {
    rest -= shares[id];
    if (rest < 0) return id;
  }
  return ids[0];
}
