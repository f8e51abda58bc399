"""The report of a corpus as text for a console, and as one picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.analysis import figures
from slm.analysis.charts import palette
from slm.errors import one_line, printable
from slm.tables import columns

EXCERPT = 90  # characters of a document
SPLITS = ("train", "validation")
BARS = 8  # in a chart


def text(found: Mapping[str, Any]) -> str:
    """All sections, control characters escaped."""
    parts = [
        columns([("", *SPLITS), *counts(found)], right=True),
        "\n".join(shares(found)),
        *(section for split in SPLITS for section in signs(found["splits"][split], split)),
        "\n".join(documents(found)),
    ]
    return "\n\n".join(filter(None, parts))


def counts(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of the table: a name, and the value of each split."""
    splits = [found["splits"][split] for split in SPLITS]
    for name in ("documents", "bytes", "characters"):
        yield name, *(f"{its[name]:,}" for its in splits)
    if all(its.get("tokens") for its in splits):
        about = "about " if found["tokenizer"]["estimated"] else ""
        yield f"tokens ({found['tokenizer']['name']})", *(f"{about}{its['tokens']:,}" for its in splits)
        yield "bytes per token", *(f"{its['bytes'] / its['tokens']:.2f}" for its in splits)
    for name in splits[0]["length_bytes"]:
        label = {
            "shortest": "bytes of the shortest document",
            "50%": "median",
            "longest": "bytes of the longest document",
        }
        yield label.get(name, f"{name} of the documents at most"), *(f"{its['length_bytes'][name]:,}" for its in splits)
    yield "empty lines", *(f"{its['empty_lines']:,}" for its in splits)
    yield "documents that occur earlier, too", *(of(its["repeated_documents"], its["documents"]) for its in splits)
    yield "documents that train has, too", "", of(found["overlap"]["documents"], splits[1]["documents"])
    for n in (8, 13):
        its = found["overlap"][f"{n}_grams"]
        part = "" if its["sampled"] == 1 else f" (sampled: {its['sampled']:.2g})"
        yield f"sequences of {n} words that train has, too{part}", "", of(its["in_train"], its["ngrams"])
        if its["sampled"] == 1:
            yield f"documents with such {n} words", "", of(its["documents_with_one"], its["documents"])
        yield f"documents, half of whose {n} words are such", "", of(its["documents_with_half"], its["documents"])


def of(part: int, whole: int) -> str:
    """A count and its share."""
    return f"{part:,} ({part / whole:.1%})" if whole else "-"


def shares(found: Mapping[str, Any]) -> Iterator[str]:
    """What is known by samples, and the kinds of characters."""
    if "reason" in found["tokenizer"]:
        yield f"tokens: not counted, since {found['tokenizer']['reason']}"
    if (near := found["near_duplicates"]) is None:
        yield "nearly equal documents: not sought, since datasketch is missing; pip install -e '.[duplicates]'"
    elif near["sample"]:
        total = found["splits"]["train"]["documents"]
        others = f"all {total:,}" if near["compared"] >= total else f"the first {near['compared']:,} of {total:,}"
        share = f"{near['similar'] / near['sample']:.1%}; 95 % interval {near['low']:.1%} to {near['high']:.1%}"
        yield (
            f"nearly equal documents: {near['similar']:,} of {near['sample']:,} sampled train documents ({share})\n"
            f"  resemble another one among {others}: {near['similarity']:.0%} of their {near['words']}-word sequences "
            "agree, by MinHash"
        )
        for label, example in zip(("such as", "and"), near["example"] or ()):
            yield f"  {label} {excerpt(example)}"
    for split in SPLITS:
        total = found["splits"][split]["characters"]
        kinds = (
            f"{name} {count / total:.1%}" if count > total / 1000 else f"{name} {count:,}"
            for name, count in found["splits"][split]["scripts"].items()
        )
        yield one_line(f"characters of {split}: {', '.join(kinds)}", 400)


def signs(its: Mapping[str, Any], split: str) -> Iterator[str]:
    """The signs of damage in a split, with an example each."""
    rows = [
        (
            f"  {sign}",
            f"{one['count']:,}",
            f"in {of(one['documents'], its['documents'])} documents",
            repr(one["example"]),
        )
        for sign, one in its["signs"].items()
    ]
    if rows:
        yield f"signs in {split}:\n" + columns([("  sign", "times", "documents", "for example"), *rows], width=90)


def documents(found: Mapping[str, Any]) -> Iterator[str]:
    """The longest, the most repeated and the strangest documents of train."""
    train, strange = found["splits"]["train"], found["strange"]
    if most := train["most_repeated"]:
        yield "most repeated in train:"
        yield from (f"  {one['times']:,} times: {excerpt(one['text'])}" for one in most)
    yield "longest in train:"
    yield from (
        f"  {one['bytes']:,} bytes, document {one['document']:,}: {excerpt(one['text'])}" for one in train["longest"]
    )
    least = strange["shortest_characters"]
    yield f"bits per character under a character trigram model of train, for documents of at least {least} characters:"
    for end in ("highest", "lowest"):
        for one in strange[end]:
            yield f"  {end} {one['bits']:.2f}, document {one['document']:,}: {excerpt(one['text'])}"


def excerpt(document: str) -> str:
    """The beginning of a document in one line."""
    return one_line(repr(document[:EXCERPT]))


def draw(path: Path, found: Mapping[str, Any]):
    """Lengths, characters and repetitions as a PNG, on white, legible at 800 pixels. Raises: OSError."""
    from matplotlib.figure import Figure  # pyplot would need a display
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = Figure(figsize=(10, 3.8), layout="constrained", facecolor="white")
    lengths, characters, repeated = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    colors = palette("light")
    for split, color in zip(SPLITS, ("c0", "c1")):
        its = found["splits"][split]
        starts, heights = zip(*its["histogram"])
        shares = [100 * height / its["documents"] for height in heights]
        lengths.bar(
            starts, shares, [start * (2**0.25 - 1) for start in starts], align="edge", color=colors[color], alpha=0.55,
            label=f"{split} ({its['documents']:,})",
        )  # fmt: skip
    lengths.set_xscale("log")
    low, high = lengths.get_xlim()
    lengths.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,), numticks=8))
    lengths.xaxis.set_major_formatter(EngFormatter(sep=""))
    lengths.xaxis.set_minor_formatter("")
    lengths.set(xlabel="length of a document (bytes)", ylabel="documents (%)", title="Lengths")
    lengths.set_ylim(top=1.3 * lengths.get_ylim()[1])  # room for the legend
    lengths.legend(fontsize=9)
    train = found["splits"]["train"]
    kinds = list(train["scripts"].items())[:BARS]
    bars(characters, [(name, 100 * count / train["characters"], None) for name, count in kinds], colors["c0"])
    characters.set(xlabel="share of train (%)", title="Characters")
    bars(repeated, repetitions(found), colors["c1"])
    repeated.set(xlabel="share (%)", title="Repetitions")
    size = sum(found["splits"][split]["bytes"] for split in SPLITS)
    figure.suptitle(f"{printable(found['corpus'], 80)}, {size / 1e6:,.1f} MB", fontsize=11, parse_math=False)
    figures.write(path, figure)


def bars(axes, rows: Sequence[tuple[str, float, tuple[float, float] | None]], color: str):
    """Horizontal bars with their values, the first on top; rows of (name, value in %, interval)."""
    for place, (_, value, interval) in enumerate(rows):
        error = interval and [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
        axes.barh(place, value, color=color, xerr=error, capsize=3)
        end = max(value, interval[1] if interval else 0)
        axes.annotate(f" {value:.3g}", (end, place), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [printable(name) for name, *_ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)


def repetitions(found: Mapping[str, Any]) -> list[tuple[str, float, tuple[float, float] | None]]:
    """Shares in % of what occurs more than once."""
    train, validation, overlap = found["splits"]["train"], found["splits"]["validation"], found["overlap"]
    rows = [
        ("train: repeated", 100 * train["repeated_documents"] / train["documents"], None),
        ("validation: repeated", 100 * validation["repeated_documents"] / validation["documents"], None),
        ("validation: in train", 100 * overlap["documents"] / validation["documents"], None),
    ]
    for n in (13, 8):
        its = overlap[f"{n}_grams"]
        rows.append((f"validation: {n} words in train", 100 * its["in_train"] / max(its["ngrams"], 1), None))
    if (near := found["near_duplicates"]) and near["sample"]:
        share, interval = 100 * near["similar"] / near["sample"], (100 * near["low"], 100 * near["high"])
        rows.insert(1, ("train: nearly equal", share, interval))
    return rows
