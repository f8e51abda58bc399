"""The tables of an evaluation, for a console and for a report. evaluation.json may be somebody else's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slm.security import at, is_number
from slm.tables import columns

MAX_ROWS = 40  # of one table
SKILLS = 8  # of a storyworld on a console
TEXTS = {  # key -> what people call it
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "self_bleu": "self-BLEU",
    "repeated_4_grams": "repeated 4-grams",
    "loops": "end in a loop",
}
OVERVIEW = {  # measure -> its place in an evaluation, and its format
    "nats per token": ("loss.nats", ".4f"),
    "bits per byte, with ends of documents": ("loss.bits_per_byte", ".4f"),
    "bits per byte, without them": ("loss.text_bits_per_byte", ".4f"),
    "in-context gain, nats": ("positions.in_context_gain", ".4f"),
    "calibration error": ("calibration.ece", ".2%"),
    "temperature of the least loss": ("calibration.best_temperature", ".3f"),
    "texts at T=1: distinct-2": ("texts.rows.T=1.distinct_2", ".1%"),
    "texts at T=1: 8-grams in train": ("memorisation.rows.T=1.ngrams.8", ".1%"),
    **{f"right on {kind}": (f"probes.{kind}.right", ".1%") for kind in ("names", "pronouns", "word order")},
    "bits per story above the floor": ("stories.seen.excess", ".2f"),
    "valid stories at T=1": ("stories.samples.T=1.valid", ".1%"),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells between lines of text, of which the first is the title."""

    lines: Sequence[str]
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    most: int = MAX_ROWS  # rows on a console

    def __str__(self) -> str:
        rows = [*([self.head] if self.head else []), *self.rows[: self.most]]
        below = [*self.lines[1:], *(columns(rows).splitlines() if rows else []), *self.notes]
        return "\n".join([self.lines[0], *(f"  {line}" for line in below)])


def objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def rows_of(value: Any) -> dict[str, Any]:
    """The first entries of an object; none for anything else."""
    return dict(list(value.items())[:MAX_ROWS]) if isinstance(value, dict) else {}


def plain(value: Any, form: str = ",") -> str:
    """A number, or a dash."""
    return f"{value:{form}}" if is_number(value) else "–"


def shown(value: Any, form: str = ".4f") -> str:
    """mean [low, high] of an estimate, or a dash."""
    numbers = [at(value, name) for name in ("mean", "low", "high")]
    if not all(map(is_number, numbers)):
        return "–"
    mean, low, high = (f"{number:{form}}" for number in numbers)
    return f"{mean} [{low}, {high}]"


def text(result: dict[str, Any]) -> str:
    """All that was measured, for a console."""
    title = f"{result['checkpoint']}, step {result['step']:,}\n"
    title += f"{result['data']['name']}, seed {result['seed']}, 95 % intervals in brackets"
    return "\n\n".join([title, *("\n".join(map(str, block)) for block in blocks(result))])


def blocks(result: dict[str, Any]) -> Iterator[list[Table]]:
    """The tables of each measure that an evaluation has."""
    for name, block in BLOCKS.items():
        if isinstance(found := result.get(name), dict) and found:
            yield [*block(found)]


def overview(results: Sequence[dict[str, Any]], labels: Sequence[str]) -> Table:
    """A column for each of several evaluations, under its label."""
    rows = [
        (name, *(shown(at(r, *place.split(".")), form) for r in results)) for name, (place, form) in OVERVIEW.items()
    ]
    n = [f"{at(r, 'loss', 'n')} {at(r, 'loss', 'unit')}, seed {r.get('seed')}" for r in results if r.get("loss")]
    title = "; ".join(["95 % intervals over documents in brackets", *dict.fromkeys(n)])
    return Table(lines=[title], head=("", *labels), rows=[row for row in rows if set(row[1:]) != {"–"}])


def loss(found: dict[str, Any]) -> Iterator[Table]:
    n = f"{plain(found.get('n'))} {found.get('unit')}" + ("" if found.get("whole") else ", the first of the split")
    size = f"{plain(found.get('tokens'))} tokens, {plain(found.get('bytes'))} bytes, layout {found.get('layout')}"
    measures = {
        "nats": ("nats per token", ".4f"),
        "perplexity": ("perplexity", ".4g"),
        "bits_per_byte": (f"bits per byte with {plain(found.get('ends'))} ends of documents", ".4f"),
        "text_bits_per_byte": ("bits per byte without them", ".4f"),
        "nats_per_end": ("nats per end of a document", ".4f"),
        "accuracy": ("most probable token is right", ".1%"),
    }
    rows = [(name, shown(found[key], form)) for key, (name, form) in measures.items() if found.get(key)]
    notes = [] if "bits_per_byte" in found else ["no bits per byte: the tokenizer loses part of this text"]
    notes += [f"{plain(found['cut'])} documents are cut to the context"] if found.get("cut") else []
    yield Table(lines=[f"loss on {n}: {size}"], rows=rows, notes=notes)


def positions(found: dict[str, Any]) -> Iterator[Table]:
    places = [found.get(name) for name in ("early", "late")]
    early, late = (" to ".join(map(str, ends[:2])) if isinstance(ends, list) else "–" for ends in places)
    gain = f"in-context gain, positions {early} less {late}: {shown(found.get('in_context_gain'))}"
    title = "loss by position in the window, nats per token"
    yield Table(lines=[title], rows=_groups(found), notes=[gain])


def frequency(found: dict[str, Any]) -> Iterator[Table]:
    counted = plain(found.get("counted"))
    title = f"loss by rank of the token among {counted} tokens of train, nats per token"
    yield Table(lines=[title], rows=_groups(found))


def _groups(found: dict[str, Any]) -> list[tuple[str, ...]]:
    groups = objects(found.get("groups"))[:MAX_ROWS]
    return [(str(row.get("group")), plain(row.get("tokens")), shown(row.get("nats"))) for row in groups]


def calibration(found: dict[str, Any]) -> Iterator[Table]:
    best, mean = shown(found.get("best_temperature"), ".3f"), at(found, "best_temperature", "mean")
    if is_number(mean) and not 0.51 < mean < 1.96:
        best += " at an end of the range"
    gain = plain(found.get("temperature_gain_nats"), ".4f")
    note = f"temperature of the least loss {best}, which saves {gain} nats per token"
    yield Table(lines=[f"calibration: expected error {shown(found.get('ece'), '.2%')}"], notes=[note])


def texts(found: dict[str, Any]) -> Iterator[Table]:
    if not (rows := rows_of(found.get("rows"))):
        yield Table(lines=["texts: too short to be measured"])
        return
    title = (
        f"{plain(found.get('n'))} generated texts and as much held-out text, of {plain(found.get('words'), '.0f')} "
        f"words on average; distinct-n and self-BLEU of {plain(found.get('group'))} texts together"
    )
    cells = [(name, *(shown(at(row, key), ".1%") for row in rows.values())) for key, name in TEXTS.items()]
    yield Table(lines=[title], head=("", *rows), rows=cells)


def memorisation(found: dict[str, Any]) -> Iterator[Table]:
    rows = rows_of(found.get("rows"))
    lengths = [*rows_of(at(next(iter(rows.values()), None), "ngrams"))]
    cells, notes = [], []
    for name, row in rows.items():
        shares = [shown(at(row, "ngrams", n), ".1%") for n in lengths]
        facts = plain(at(row, "longest_copy")), shown(at(row, "duplicates"), ".1%")
        cells.append((name, plain(at(row, "n")), *shares, *facts))
        notes += [f"longest copy, {name}: {' '.join(str(copy).split())}"] if (copy := at(row, "copy")) else []
    title = f"n-grams of tokens that occur in the {plain(found.get('train_tokens'))} tokens of train"
    head = ("", "texts", *(f"n = {n}" for n in lengths), "longest copy", "whole documents")
    yield Table(lines=[title], head=head, rows=cells, notes=notes)


def probes(found: dict[str, Any]) -> Iterator[Table]:
    cells = [
        (kind, plain(at(its, "n")), shown(at(its, "right"), ".1%"), shown(at(its, "bits"), ".2f"))
        for kind, its in rows_of(found).items()
    ]
    pairs = [(kind, at(its, "example")) for kind, its in rows_of(found).items()]
    notes = [f"{kind}: {' | '.join(str(end)[-100:] for end in pair)}" for kind, pair in pairs if isinstance(pair, list)]
    head = ("", "n", "right", "bits between the two")
    yield Table(lines=["two-choice probes, 50 % by chance"], head=head, rows=cells, notes=notes)


def bleu(found: dict[str, Any]) -> Iterator[Table]:
    score = f"{shown(found.get('bleu'), '.2f')} ({found.get('signature')})"
    yield Table(lines=[f"BLEU of {plain(found.get('n'))} completions: {score}"])


def stories(found: dict[str, Any]) -> Iterator[Table]:
    seen, held_out = (rows_of(found.get(name)) for name in ("seen", "held_out"))
    size, floor, model = (seen.get(name) for name in ("bytes", "floor", "model"))
    excess = shown(seen.get("excess"), ".2f")
    bits = f"floor {plain(floor, '.2f')}, model {plain(model, '.2f')}, excess {excess}"
    lines = [
        f"storyworld {found.get('level')}: {plain(seen.get('stories'))} validation stories, "
        f"{plain(held_out.get('stories'))} of held-out pairs",
        f"bits per story, of {plain(size, '.0f')} bytes: {bits}",
    ]
    if all(map(is_number, (size, floor, model))) and size:
        lines.append(f"bits per byte: floor {floor / size:.4f}, model {model / size:.4f}")
    cells = []
    for part, its in rows_of(seen.get("parts")).items():
        there = shown(at(held_out, "parts", part, "excess"), ".2f")
        facts = plain(at(its, "tokens"), ".1f"), plain(at(its, "floor"), ".2f"), shown(at(its, "excess"), ".2f")
        cells.append((part, *facts, there))
    head = ("bits per story", "tokens", "floor", "excess", "on held-out pairs")
    yield Table(lines=lines, head=head, rows=cells)
    skills = rows_of(seen.get("skills")).items()
    cells = [(name, shown(its, ".2f"), shown(at(held_out, "skills", name), ".2f")) for name, its in skills]
    title = ["excess by skill, bits per story"]
    yield Table(lines=title, head=("", "excess", "on held-out pairs"), rows=cells, most=SKILLS)
    yield samples(rows_of(found.get("samples")), found.get("examples"))


def samples(rows: dict[str, Any], examples: Any) -> Table:
    forms = {"valid": ".1%", "novel": ".1%", "prefix": ".1%", "sentences": ".1f"}
    cells = [(name, *(shown(at(row, name), form) for row in rows.values())) for name, form in forms.items()]
    errors = {name: rows_of(at(row, "errors")).items() for name, row in rows.items()}
    notes = [
        f"first errors, {n}: {', '.join(f'{e} {count}' for e, count in its) or 'none'}" for n, its in errors.items()
    ]
    notes += map(str, examples[:MAX_ROWS] if isinstance(examples, list) else [])
    head = ("", *(f"{name}, n = {at(row, 'n')}" for name, row in rows.items()))
    return Table(lines=["generated stories"], head=head, rows=cells, notes=notes)


def requests(found: dict[str, Any]) -> Iterator[Table]:
    rows = rows_of(found.get("rows"))
    names = [*rows_of(next(iter(rows.values()), None))]
    cells = [(name, *(shown(at(row, key), ".1%") for key in names)) for name, row in rows.items()]
    notes = []
    for its in objects(found.get("examples")):
        verdict = "obeys" if its.get("obeys") else "valid" if its.get("valid") else "not valid"
        notes.append(f"{verdict}: {its.get('request')} {its.get('text')}")
    n = plain(found.get("n"))
    title = f"{n} requests: stories that are valid, and with the hero, the plot, or both that were asked for"
    yield Table(lines=[title], head=("", *names), rows=cells, notes=notes)


BLOCKS: dict[str, Callable[[dict[str, Any]], Iterator[Table]]] = {
    function.__name__: function
    for function in (loss, positions, frequency, calibration, texts, memorisation, probes, bleu, stories, requests)
}
