"""The table of docs/presets.md, from conf/: `python tests/presets_table.py` writes it anew."""

from pathlib import Path

from slm.estimate import parameters
from slm.planning.devices import known_devices, money
from slm.run import cli
from slm.run.plan import make_plan
from slm.tables import clock

PAGE = Path(__file__).parents[1] / "docs" / "presets.md"
PRESETS = "smalllm", "gpt2_124m", "gpt2_350m", "char_slm", "sml", "slm_notebook", "slm_notebook_sane"
DEVICES = "RTX 4090", "A100"
BEGIN, END = "<!-- by tests/presets_table.py -->\n", "<!-- end -->\n"


def table() -> str:
    """A line per preset: sizes, tokens, and the planned time and cost on the DEVICES. Markdown."""
    heads = "experiment=", "parameters", "without embeddings", "data, tokenizer", "steps x windows x context", "tokens"
    rows = [[*heads, *DEVICES], ["---"] * (len(heads) + len(DEVICES))]
    for name in PRESETS:
        words = f"experiment={name}", "trainer=gpu", "plan=true", "cache_dir=/no/cache"
        plan = make_plan(config := cli.compose(words))
        count, source = parameters(plan.model), config.plain
        kind = source["tokenizer"]["_target_"].split(".")[-3]
        corpus = source["data"]["corpus"]["_target_"].rpartition(".")[2]
        known = {device.name: device for device in known_devices()}
        seconds = {device: known[device].seconds(plan.work) for device in DEVICES}
        rows.append(
            [
                f"`{name}`",
                f"{count.total:,}",
                f"{count.non_embedding:,}",
                f"{corpus}, {kind}",
                f"{plan.steps:,} x {config.data.batch_windows:,} x {plan.model.context:,}",
                f"{plan.tokens / 1e6:,.0f}M",
                *(f"{clock(taken)}, ${money(known[device].cost(taken))}" for device, taken in seconds.items()),
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main():
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
