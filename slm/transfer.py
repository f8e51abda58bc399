"""The weights of one model as the start of another: by name and shape, with stated rules for another vocabulary,
context or depth.

Shapes: V new vocabulary, W old vocabulary, C width.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm import tokenizers
from slm.chat_template import ChatTemplate
from slm.errors import UserError
from slm.model import GPT, GPTConfig
from slm.own_model import AnyConfig, build
from slm.tokenizers import Tokenizer

WRITERS = re.compile(r"blocks\.\d+\.(attention|mlp)\.out\.")
VOCABULARY = re.compile(r"(tokens|head|attention\.value_embedding)\.(weight|bias)")  # a row for each id
SCALARS = "residual_scales", "embedding_scales"  # one for each block
SHOWN = 4  # names of tensors in a line


@dataclass(frozen=True)
class Source:
    """A trained model, LoRA merged, and its tokenizer, from which a run starts."""

    name: str  # its file or folder
    model: nn.Module
    tokenizer: Tokenizer
    step: int = 0
    run_id: str = ""
    chat: ChatTemplate | None = None  # of its conversations

    def check(self, config: AnyConfig):
        """Raises: UserError: for a model whose tensors have other shapes, but for those of vocabulary and context, or
        other names."""
        theirs, before = self.model.state_dict(), self.model.config
        with torch.device("meta"):
            own = build(replace(config, vocab_size=before.vocab_size, context=before.context)).state_dict()
        if not own.keys() & theirs.keys():
            raise UserError(f"init_from={self.name} has no tensor with a name of this model, such as {_shown([*own])}")
        for name, tensor in own.items():
            if name in theirs and name not in SCALARS and tensor.shape != theirs[name].shape:
                keys = "width", "head_dim", "kv_heads", "mlp_width", "mlp", "head_bias", "bigram_embeddings"
                pairs = {key: (getattr(before, key, None), getattr(config, key, None)) for key in keys}
                changed = ", ".join(f"model.{key} {old} -> {new}" for key, (old, new) in pairs.items() if old != new)
                raise UserError(
                    f"init_from={self.name}: {name} is {tuple(theirs[name].shape)} there and {tuple(tensor.shape)} "
                    f"here ({changed or 'another model'}); leave out what makes it another one, or start anew"
                )


def start_from(source: Source, model: nn.Module, tokenizer: Tokenizer) -> dict[str, Any]:
    """Fills a new model with the weights of the source. Returns what was done, for run.json.

    A tensor is taken by its name. Another vocabulary: see `pieces_of`. Learned positions behind the old context repeat
    from its start (arXiv:2004.05150). Further blocks are new and start as identities (arXiv:2401.02415); blocks, and
    positions, that there are not any more are left over. All else keeps its random start.
    With other multipliers (slm.parametrization) the weights are changed so that the function stays.
    Raises: UserError: if LoRA would freeze a tensor with a random start.
    """
    own, theirs = model.state_dict(), source.model.state_dict()
    same = tokenizers.files(source.tokenizer) == tokenizers.files(tokenizer)
    pieces = None if same or not isinstance(model, GPT) else pieces_of(source.tokenizer, tokenizer)
    if not isinstance(model, GPT) and not same:  # rows of its ids, under whatever names
        theirs = {name: old for name, old in theirs.items() if source.tokenizer.vocab_size not in old.shape}
    elif isinstance(model, GPT):
        theirs = rescaled(theirs, source.model.config, model.config)
        if model.config.tied and not source.model.config.tied:
            del theirs["head.weight"]
        if pieces:
            theirs.pop("bigrams.weight", None)  # its rows are those of pairs of old ids
    taken = []
    for name, old in theirs.items():
        if name in own and (value := _adapted(name, old, own[name], pieces)).shape == own[name].shape:
            own[name].copy_(value)
            taken.append(name)
    depth = len(source.model.blocks)
    for block in model.blocks[depth:] if isinstance(model, GPT) else ():
        for writer in (block.attention.out, block.mlp.out):
            for parameter in writer.parameters(recurse=False):
                nn.init.zeros_(parameter)
    new = [name for name in own if name not in taken and ".lora_" not in name]
    if new and getattr(model.config, "lora", None):
        raise UserError(f"model.lora freezes all weights, and {_shown(new)} would keep a random start; leave LoRA out")
    return {
        "from": source.name,
        "run_id": source.run_id,
        "step": source.step,
        "taken": sum(own[name].numel() for name in taken if not (name == "head.weight" and model.config.tied)),
        "tensors": len(taken),
        "new": new,
        "left_over": [name for name in source.model.state_dict() if name not in taken],
        "vocabulary": pieces and pieces.counts,
        "context": [source.model.config.context, model.config.context],
        "depth": [depth, len(model.blocks)],
    }


def rescaled(weights: Mapping[str, Tensor], before: GPTConfig, after: GPTConfig) -> dict[str, Tensor]:
    """The weights with which a model of the second configuration computes what one of the first does with these: what
    multiplies branches goes into the layers that end them, what multiplies features into the last norm. Exact for
    powers of two."""
    branch, output = (before.rules()[kind].forward / after.rules()[kind].forward for kind in ("writer", "readout"))
    factors = {name: branch if WRITERS.match(name) else output if name.startswith("norm.") else 1 for name in weights}
    return {name: tensor if factors[name] == 1 else tensor * factors[name] for name, tensor in weights.items()}


def standardized(model: nn.Module) -> nn.Module:
    """The same function without multipliers, which other programs do not have; a model without them as it is."""
    if getattr(model.config, "parametrization", "standard") == "standard":
        return model
    plain = GPT(replace(model.config, parametrization="standard", base_width=None, base_depth=None)).eval()
    plain.load_state_dict(rescaled(model.state_dict(), model.config, plain.config))
    return plain


@dataclass(frozen=True)
class Pieces:
    """For each of V new ids the old ids whose rows are averaged."""

    rows: Sequence[Sequence[int]]
    counts: dict[str, int]  # equal, spelled, mean

    def of(self, old: Tensor) -> Tensor:
        """Rows (W, C) or numbers (W,) of the old ids to those of the new (V, C) or (V,)."""
        table = old.unsqueeze(1) if old.dim() == 1 else old
        ids = torch.tensor([row for rows in self.rows for row in rows])
        lengths = torch.tensor([len(rows) for rows in self.rows])
        new = F.embedding_bag(ids, table, lengths.cumsum(0) - lengths, mode="mean")
        new[lengths == 0] = table.mean(0)
        return new.squeeze(1) if old.dim() == 1 else new


def pieces_of(old: Tokenizer, new: Tokenizer) -> Pieces:
    """The rule for another vocabulary: the end of a document and each piece with equal bytes keep their row. Any other
    piece gets the mean of the rows of the longest old pieces that spell it, one after the other (arXiv:2402.09977);
    without such pieces the mean of all."""
    known: dict[bytes, list[int]] = {}
    for token, piece in enumerate(tokenizers.pieces(old)):
        known.setdefault(piece, []).append(token)
    del known[b""]  # of control ids
    longest, rows, counts = max(map(len, known)), [], dict.fromkeys(("equal", "spelled", "mean"), 0)
    left = {piece: list(ids) for piece, ids in known.items()}
    for token, piece in reversed([*enumerate(tokenizers.pieces(new))]):  # an id of a single byte comes before the piece
        if token == new.eos:
            kind, found = "equal", [old.eos]
        elif piece in known:
            kind, found = "equal", [left[piece].pop() if left[piece] else known[piece][-1]]
        else:
            found = _spelled(piece, known, longest)
            kind = "spelled" if found else "mean"
        rows.append(found)
        counts[kind] += 1
    return Pieces(rows[::-1], counts)


def _spelled(piece: bytes, known: dict[bytes, list[int]], longest: int) -> list[int]:
    """The ids of the longest known pieces, from the start on; none if they do not spell the whole piece."""
    found, start = [], 0
    while start < len(piece):
        ends = range(min(len(piece), start + longest), start, -1)
        if (end := next((end for end in ends if piece[start:end] in known), None)) is None:
            return []
        found.append(known[piece[start:end]][-1])
        start = end
    return found


def _adapted(name: str, old: Tensor, own: Tensor, pieces: Pieces | None) -> Tensor:
    if pieces and VOCABULARY.search(name):
        return pieces.of(old)
    if name == "positions.weight":
        return old[torch.arange(len(own)) % len(old)]
    if name in SCALARS:
        return torch.cat([old, own[len(old) :]])[: len(own)]
    return old


def _shown(names: Sequence[str]) -> str:
    """Names of tensors in short: those of a block as one."""
    short = list(dict.fromkeys(re.sub(r"^(blocks\.\d+)\..*", r"\1", name) for name in names))
    return ", ".join(short[:SHOWN]) + (f" and {len(short) - SHOWN} more" if len(short) > SHOWN else "")


def described(start: dict[str, Any]) -> list[str]:
    """What `start_from` has done, in lines for people."""
    (old_context, context), (old_depth, depth) = start["context"], start["depth"]
    lines = [f"{start['from']}, step {start['step']:,}: {start['taken']:,} weights in {start['tensors']} tensors"]
    if its := start["vocabulary"]:
        lines.append(
            f"vocabulary: {its['equal']:,} pieces keep their embedding, {its['spelled']:,} start from the mean of the "
            f"pieces that spell them, {its['mean']:,} from the mean of all"
        )
    if old_context != context:
        lines.append(f"context {old_context} -> {context}; learned positions, if any, are repeated or cut")
    if old_depth != depth:
        lines.append(f"depth {old_depth} -> {depth}; further blocks start as identities")
    lines += [f"{title}: {_shown(start[key])}" for title, key in TITLES.items() if start[key]]
    return lines


TITLES = {"new, from a random start": "new", "left over": "left_over"}
