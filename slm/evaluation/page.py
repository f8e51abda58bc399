"""An evaluation as text for a console: tables of estimates with their 95 % intervals."""

from collections.abc import Iterator
from typing import Any

from slm.evaluation.intervals import shown
from slm.tables import columns

MEASURES = {  # of texts, with what people call them
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "self_bleu": "self-BLEU",
    "repeated_4_grams": "repeated 4-grams",
    "loops": "end in a loop",
}
SKILLS = 8  # of storyworld that are printed


def page(evaluation: dict[str, Any]) -> str:
    """All that was measured, a block of lines for each measure."""
    title = f"{evaluation['checkpoint']}, step {evaluation['step']:,}"
    blocks = [f"{title}\n{evaluation['data']['name']}, seed {evaluation['seed']}, 95 % intervals in brackets"]
    for name, block in BLOCKS.items():
        if evaluation.get(name):
            blocks.append("\n".join(block(evaluation[name])))
    return "\n\n".join(blocks)


def loss(found: dict[str, Any]) -> Iterator[str]:
    n = f"{found['n']:,} {found['unit']}" + ("" if found["whole"] else ", the first of the split")
    yield f"loss on {n}: {found['tokens']:,} tokens, {found['bytes']:,} bytes, layout {found['layout']}"
    rows = [("nats per token", found["nats"], ".4f"), ("perplexity", found["perplexity"], ".4g")]
    if "bits_per_byte" in found:
        rows.append((f"bits per byte with {found['ends']:,} ends of documents", found["bits_per_byte"], ".4f"))
        rows.append(("bits per byte without them", found["text_bits_per_byte"], ".4f"))
    rows.append(("nats per end of a document", found["nats_per_end"], ".4f"))
    rows.append(("most probable token is right", found["accuracy"], ".1%"))
    yield from _lines([(name, shown(value, form)) for name, value, form in rows if value])
    if "bits_per_byte" not in found:
        yield "  no bits per byte: the tokenizer loses part of this text"
    if found["cut"]:
        yield f"  {found['cut']:,} documents are cut to the context"


def positions(found: dict[str, Any]) -> Iterator[str]:
    yield "loss by position in the window, nats per token"
    yield from _lines([(row["group"], f"{row['tokens']:,}", shown(row["nats"])) for row in found["groups"]])
    (a, b), (c, d) = found["early"], found["late"]
    yield f"  in-context gain, positions {a} to {b} less {c} to {d}: {shown(found['in_context_gain'])}"


def frequency(found: dict[str, Any]) -> Iterator[str]:
    yield f"loss by rank of the token among {found['counted']:,} tokens of train, nats per token"
    yield from _lines([(row["group"], f"{row['tokens']:,}", shown(row["nats"])) for row in found["groups"]])


def calibration(found: dict[str, Any]) -> Iterator[str]:
    yield f"calibration: expected error {shown(found['ece'], '.2%')}"
    best, gain = shown(found["best_temperature"], ".3f"), found["temperature_gain_nats"]
    if not 0.51 < found["best_temperature"]["mean"] < 1.96:
        best += " at an end of the range"
    yield f"  temperature of the least loss {best}, which saves {gain:.4f} nats per token"


def texts(found: dict[str, Any]) -> Iterator[str]:
    if not found["rows"]:
        yield "texts: too short to be measured"
        return
    yield (
        f"{found['n']} generated texts and as much held-out text, of {found['words']:.0f} words on average; "
        f"distinct-n and self-BLEU of {found['group']} texts together"
    )
    heads = ["", *found["rows"]]
    rows = [[name, *(shown(row[key], ".1%") for row in found["rows"].values())] for key, name in MEASURES.items()]
    yield from _lines([heads, *rows])


def memorisation(found: dict[str, Any]) -> Iterator[str]:
    yield f"n-grams of tokens that occur in the {found['train_tokens']:,} tokens of train"
    lengths = list(next(iter(found["rows"].values()))["ngrams"])
    heads = ["", "texts", *(f"n = {n}" for n in lengths), "longest copy", "whole documents"]
    rows = []
    for name, row in found["rows"].items():
        shares = [shown(row["ngrams"].get(n), ".1%") for n in lengths]
        rows.append([name, str(row["n"]), *shares, str(row["longest_copy"]), shown(row.get("duplicates"), ".1%")])
    yield from _lines([heads, *rows])
    for name, row in found["rows"].items():
        if row["longest_copy"]:
            yield f"  longest copy, {name}: {' '.join(row['copy'].split())}"


def probes(found: dict[str, Any]) -> Iterator[str]:
    yield "two-choice probes, 50 % by chance"
    rows = [["", "n", "right", "bits between the two"]]
    for kind, its in found.items():
        rows.append([kind, str(its["n"]), shown(its.get("right"), ".1%"), shown(its.get("bits"), ".2f")])
    yield from _lines(rows)


def bleu(found: dict[str, Any]) -> Iterator[str]:
    yield f"BLEU of {found['n']:,} completions: {shown(found['bleu'], '.2f')} ({found['signature']})"


def stories(found: dict[str, Any]) -> Iterator[str]:
    seen, held_out = found["seen"], found["held_out"]
    yield f"storyworld {found['level']}: {seen['stories']} validation stories, {held_out['stories']} of held-out pairs"
    yield (
        f"  bits per story, of {seen['bytes']:.0f} bytes: floor {seen['floor']:.2f}, model {seen['model']:.2f}, "
        f"excess {shown(seen['excess'], '.2f')}"
    )
    yield f"  bits per byte: floor {seen['floor'] / seen['bytes']:.4f}, model {seen['model'] / seen['bytes']:.4f}"
    rows = [["bits per story", "tokens", "floor", "excess", "on held-out pairs"]]
    for part, values in seen["parts"].items():
        there = shown(held_out["parts"][part]["excess"], ".2f")
        rows.append([part, f"{values['tokens']:.1f}", f"{values['floor']:.2f}", shown(values["excess"], ".2f"), there])
    yield from _lines(rows)
    yield "excess by skill, bits per story"
    rows = [["", "excess", "on held-out pairs"]]
    for skill in list(seen["skills"])[:SKILLS]:
        there = shown(held_out["skills"].get(skill), ".2f")
        rows.append([skill, shown(seen["skills"][skill], ".2f"), there])
    yield from _lines(rows)
    yield from samples(found["samples"])
    yield from found["examples"]


def requests(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['n']} requests: stories that are valid, and with the hero, the plot, or both that were asked for"
    yield from _lines(
        [
            ["", *(key for row in list(found["rows"].values())[:1] for key in row)],
            *([name, *(shown(its, ".1%") for its in row.values())] for name, row in found["rows"].items()),
        ]
    )
    for its in found["examples"]:
        verdict = "obeys" if its["obeys"] else "valid" if its["valid"] else "not valid"
        yield f"  {verdict}: {its['request']} {its['text']}"


def samples(found: dict[str, Any]) -> Iterator[str]:
    rows = [["samples", *(f"{name}, n = {row['n']}" for name, row in found.items())]]
    for measure, form in {"valid": ".1%", "novel": ".1%", "prefix": ".1%", "sentences": ".1f"}.items():
        rows.append([measure, *(shown(row[measure], form) for row in found.values())])
    yield from _lines(rows)
    for name, row in found.items():
        errors = ", ".join(f"{error} {count}" for error, count in row["errors"].items())
        yield f"  first errors, {name}: {errors or 'none'}"


def _lines(rows: list) -> Iterator[str]:
    yield from ("  " + line for line in columns(rows).splitlines())


BLOCKS = {
    "loss": loss,
    "positions": positions,
    "frequency": frequency,
    "calibration": calibration,
    "texts": texts,
    "memorisation": memorisation,
    "probes": probes,
    "bleu": bleu,
    "stories": stories,
    "requests": requests,
}
