"""report.html and PNGs of a run."""

from pathlib import Path
from typing import Any

from slm.analysis import curves as run_curves
from slm.analysis import evaluation_page, figures, forks
from slm.analysis.charts import along
from slm.analysis.curves import Curves
from slm.analysis.html import Markup, Page, escaped, facts, folded, number, paragraph, picture, section, table
from slm.analysis.run_charts import POINTS, dynamics_charts, last, main_charts, other_charts
from slm.files import atomic, jsonl
from slm.results import Run
from slm.security import leaves
from slm.tables import clock

MAX_PROMPTS, MAX_SAMPLES, MAX_EVENTS, MAX_KEYS = 4, 10, 200, 600
IDENTITY = ("run_id", "created", "git_commit", "config_hash", "corpus", "tokenizer", "device", "devices", "precision")


def write(folder: Path, axis: str = "steps"):
    """Writes report.html, and curves.png (dynamics.png) in report/, with this horizontal axis.

    Raises UserError if run.json is damaged, or if the run has not recorded the axis.
    """
    run = Run(folder)
    info, summary = run.info, run.summary
    curves = run_curves.read(folder, info.get("flops_per_token"))
    charts, dynamics = along(main_charts(curves), axis), along(dynamics_charts(curves), axis)
    pictures = folder / "report"
    pictures.mkdir(exist_ok=True)
    for name, drawn in (("curves", charts), ("dynamics", dynamics[:8])):
        if drawn:
            figures.save(pictures / f"{name}.png", drawn, folder.name)
    family = forks.family(folder, info)
    page = Page(str(info.get("name") or folder.name))
    sections = [
        section("Curves", page.group(charts), picture(pictures / "curves.png", "curves of the run")),
        section("Forks", forks.tree(family, info), page.group(forks.chart(family, folder.resolve().parent), wide=True)),
        section("Plan and outcome", plan_table(info, summary, curves)),
        section("Evaluation", evaluation_page.content(folder, page)),
        section("Events", events(folder, info)),
        section("Configuration", configuration(info)),
        section("Samples", samples(folder)),
        section("Layers", page.group(dynamics), picture(pictures / "dynamics.png", "dynamics of the layers")),
        section("Further metrics", page.group(along(other_charts(curves), axis))),
        section("Identity", identity(info)),
    ]
    footer = paragraph(
        f"{curves.lines:,} lines of metrics.jsonl. A line of more than {POINTS} points is thinned: of each stretch its "
        "lowest and its highest point are kept. FLOPs are tokens x FLOPs per token of training; seconds include "
        "validations and all attempts."
    )
    atomic.write_text(folder / "report.html", page.html(header(folder, info, summary, curves), sections, footer))


def header(folder: Path, info: dict[str, Any], summary: dict[str, Any], curves: Curves) -> str:
    """Status, failure and the main numbers."""
    config, status = info["config"], str(info["status"])
    known = status if status in ("done", "failed") else ""
    note = "running, or killed: run.json was not closed" if status == "running" else status
    origin = [info["created"], info.get("device"), f"seed {info.get('seed')}"]
    origin += [f"commit {str(info['git_commit'])[:10]}"] if info.get("git_commit") else []
    quiet = escaped(" · ".join(map(str, origin)))
    line = f'<p><span class="status {known}">{escaped(note)}</span> <span class="quiet">{quiet}</span></p>'
    failure = paragraph(str(summary["failure"]), "failed-text") if summary.get("failure") else ""
    metric = str(config.get("optimized_metric", "objective"))
    found = summary["metrics"].get(metric) or {}
    objective = info.get("objective") if info.get("objective") is not None else found.get("best")
    steps = max((int(steps[-1]) for steps, _ in curves.values.values()), default=0)
    boxes = {
        metric: number(objective),
        "steps": f"{steps:,} of {info['steps']:,}" if isinstance(info.get("steps"), int) else f"{steps:,}",
        "parameters": number(summary.get("parameters")),
        "tokens": number(summary.get("tokens")),
        "FLOPs": number(summary.get("flops"), 3),
        "time": "–" if summary.get("seconds") is None else clock(summary["seconds"]),
        "tokens per second": number(summary.get("tokens_per_second")),
    }
    if summary.get("energy_joules"):
        boxes["energy"] = f"{number(summary['energy_joules'] / 3600, 3)} Wh"
    if (bits := summary["metrics"].get("val/bits_per_byte")) and metric != "val/bits_per_byte":
        boxes = {metric: boxes.pop(metric), "bits per byte": number(bits["best"]), **boxes}
    if (excess := last(curves, "val/excess_bits_per_story")) is not None:
        boxes["bits per story above the floor"] = number(excess, 3)
    return line + failure + facts({name: value for name, value in boxes.items() if value != "–"})


def configuration(info: dict[str, Any]) -> str:
    """What differs from the chosen options, and all keys."""
    changed, choices = info.get("changed"), info.get("choices")
    parts = []
    if isinstance(choices, dict):
        text = ", ".join(f"{group}={option}" for group, option in list(choices.items())[:20] if option)
        parts.append(paragraph(f"Options: {text}"))
    if isinstance(changed, dict):
        pairs = [(key, pair) for key, pair in changed.items() if isinstance(pair, list) and len(pair) == 2]
        rows = [(key, shown(preset), shown(value)) for key, (preset, value) in pairs[:MAX_KEYS]]
        parts.append(table(("key", "preset", "this run"), rows) if rows else paragraph("All values are the presets'."))
    rows = [(key, shown(value)) for key, value in list(leaves(info["config"]))[:MAX_KEYS]]
    return "".join(parts) + folded(f"all {len(rows)} keys", table(("key", "value"), rows))


def shown(value: Any) -> str:
    """A value as in YAML."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def plan_table(info: dict[str, Any], summary: dict[str, Any], curves: Curves) -> str:
    """The numbers of the plan beside those of the run; empty for a run without a plan."""
    plan = info.get("plan")
    if not isinstance(plan, dict):
        return ""
    happened = {name: summary.get(name) for name in ("seconds", "tokens", "tokens_per_second", "flops", "parameters")}
    happened["steps"] = info.get("steps")
    if "device/memory_gb" in curves:
        happened["peak_memory_bytes"] = 1e9 * float(curves.values["device/memory_gb"][1].max())
    rows = []
    for name, planned in list(plan.items())[:40]:
        if isinstance(planned, int | float) and not isinstance(planned, bool):
            found = happened.get(name)
            if name.endswith("_bytes"):
                name, planned, found = name.replace("_bytes", ", GB"), planned / 1e9, found and found / 1e9
            known = info["status"] == "done" or name != "seconds"  # else the run has not taken all of its time
            both = known and isinstance(found, int | float) and planned and found
            rows.append((name.replace("_", " "), planned, found, f"{(found / planned - 1):+.1%}" if both else ""))
    return table(("", "planned", "happened", "difference"), rows) if rows else ""


def events(folder: Path, info: dict[str, Any]) -> str:
    """Attempts, skipped updates and spikes."""
    found, count = [], 0
    for count, event in enumerate(jsonl.lines(folder / "events.jsonl"), 1):
        if count <= MAX_EVENTS:
            found.append((event["step"], event.get("event"), event.get("facts")))
    attempts, commits = info["attempts"], info.get("commits", [])
    text = f"{attempts} attempts, the later ones resumed." if attempts > 1 else "One attempt."
    if len(commits) > 1:
        text += f" The code has changed in between: {', '.join(map(str, commits[:10]))}."
    crash = atomic.read_object(folder / "crash.json") or {}
    parts = [paragraph(text)]
    if crash and info["status"] == "failed":
        parts.append(paragraph(f"Stopped at step {crash.get('step')}: {crash.get('reason')}.", "failed-text"))
    if count:
        more = f", the first {MAX_EVENTS} of them here" if count > MAX_EVENTS else ""
        parts += [paragraph(f"{count} events{more}:"), table(("step", "event", "facts"), found)]
    else:
        parts.append(paragraph("No update was skipped, and no loss spike was seen."))
    return "".join(parts)


def samples(folder: Path) -> str:
    """The texts at the same prompt over training: at most MAX_SAMPLES of each of the first prompts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in jsonl.lines(folder / "samples.jsonl"):
        prompt, text = sample.get("prompt"), sample.get("text")
        if isinstance(prompt, str) and isinstance(text, str) and (prompt in found or len(found) < MAX_PROMPTS):
            kept = found.setdefault(prompt, [])
            kept.append({**sample, "text": text[:2000], "checked": str(sample.get("checked") or "")[:2000]})
            if len(kept) > 4 * MAX_SAMPLES:  # every second one, so that a long run has few of its whole length
                del kept[1:-1:2]
    return "".join(_prompt(prompt, kept, index) for index, (prompt, kept) in enumerate(found.items()))


def _prompt(prompt: str, kept: list[dict[str, Any]], index: int) -> str:
    places = sorted({round(i * (len(kept) - 1) / (MAX_SAMPLES - 1)) for i in range(MAX_SAMPLES)})
    rows = []
    for sample in (kept[place] for place in places):
        whole = sample["checked"] or prompt + sample["text"]
        start = whole.find(prompt) + len(prompt) if prompt in whole else 0
        cut = "" if sample.get("finished", True) else " …"
        text = f'<span class="prompt">{escaped(whole[:start], 2100)}</span>{escaped(whole[start:], 2100)}{cut}'
        rows.append((sample["step"], Markup(text)))
    content = table(("step", "text"), rows)
    return content if index == 0 else folded(f"prompt: {' '.join(prompt.split())[:80]}", content)


def identity(info: dict[str, Any]) -> str:
    """Where the run comes from, and how to find it again."""
    rows = [(name.replace("_", " "), str(info[name])) for name in IDENTITY if info.get(name) is not None]
    rows += [("uncommitted changes", f"sha256 {info['git_dirty']}")] if info.get("git_dirty") else []
    rows += [(name, str(info[name])) for name in ("seed", "threads", "microbatch", "compiled") if name in info]
    versions = info.get("versions")
    if isinstance(versions, dict):
        rows.append(("versions", ", ".join(f"{name} {value}" for name, value in list(versions.items())[:30])))
    return table(("", ""), rows)
