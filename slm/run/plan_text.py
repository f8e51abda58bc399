"""The plan of one run, or of the jobs of a sweep, as text for people."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from slm.estimate import device_table, parameters, parts, training_flops_per_token
from slm.files.kept import checkpoint_files
from slm.hardware import AUTOMATIC, is_here
from slm.model import GPTConfig
from slm.own_model import shape
from slm.planning.data import PREPARATION
from slm.planning.devices import known_devices, money
from slm.planning.distributed import links
from slm.planning.largest import largest, scaled_weights
from slm.run.dial import explained
from slm.run.plan import Plan
from slm.run.prepare import shown_passes
from slm.tables import clock, columns, gigabytes


def shown(plan: Plan) -> str:
    """The plan of one run for people."""
    return "\n".join(
        [
            *_model_lines(plan),
            *_dial_lines(plan),
            *_data_lines(plan),
            *_memory_lines(plan),
            *_strategy_lines(plan),
            "",
            _device_table(plan),
        ]
    )


def _model_lines(plan: Plan) -> Iterator[str]:
    model = plan.model
    counts = ", ".join(f"{part} {count:,}" for part, count in parts(model).items())
    yield f"model:  {parameters(model).total:,} parameters: {counts}"
    yield (
        f"        {shape(model)}, context {model.context}, vocabulary {model.vocab_size:,}; "
        f"{training_flops_per_token(model) / 1e6:,.2f} MFLOP per token, forward and backward"
    )


def _dial_lines(plan: Plan) -> Iterator[str]:
    """What model=dial chose, each with its rule, and what was given instead."""
    if (dial := plan.config.dial) is None:
        return
    yield f"dial:   {dial['set']}; each value, and its rule (docs/dial.md)"
    yield from (f"        {line}" for line in columns(explained(plan.config.plain)).splitlines())


def _data_lines(plan: Plan) -> Iterator[str]:
    text, config = plan.text, plan.config
    if text.tokens is None:
        local = getattr(config.data.corpus, "is_local", lambda: True)()
        missing = "prepared: prepare=true does that" if local else "downloaded, which a plan does not do"
        yield f"data:   tokens unknown until the data is {missing}"
    else:
        source = "in the cache" if text.cached else "estimated: not in the cache"
        yield f"data:   {text.tokens:,} train tokens ({source})"
    if not text.cached and text.bytes:
        yield (
            f"        {clock(text.bytes / PREPARATION)} to prepare {text.bytes / 1e6:,.0f} MB of text once, at "
            f"{PREPARATION / 1e6:.0f} MB/s for tokenizer and encoding together"
        )
    if plan.steps is None:
        minutes = config.budget.minutes
        yield (
            f"budget: {minutes:g} minutes; the steps follow from the rate, which plan=measure measures"
            if minutes
            else "budget: steps unknown; give budget.steps for time and cost"
        )
        return
    epochs = f", {plan.epochs:.2f} epochs" if plan.epochs is not None else ""
    windows = config.data.batch_windows
    compiled = ", compiled" if plan.compiled else ""
    yield f"budget: {plan.steps:,} steps of {windows} windows = {plan.tokens:,} tokens{epochs}{compiled}"
    if plan.passes:
        yield f"        reads {shown_passes(plan.passes)}"


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory, model = plan.memory, plan.model
    held = ", ".join(f"{name} {gigabytes(size)}" for name, size in vars(memory).items() if size >= 5e5)
    there = f" of {gigabytes(plan.device.memory)}" if plan.device.memory else ""
    yield (
        f"memory: {gigabytes(memory.peak)}{there} GB at the peak, microbatch "
        f"{plan.microbatch}, {plan.hardware.precision}: {held}"
    )
    if isinstance(model, GPTConfig):
        other = replace(model, gradient_checkpointing=not model.gradient_checkpointing)
        less = replace(plan, model=other).memory
        switched = f"model.gradient_checkpointing={str(other.gradient_checkpointing).lower()}"
        yield f"        {gigabytes(less.peak)} GB with {switched}"
    if "auxiliary_loss" in plan.config.callbacks:
        logits = gigabytes(4 * plan.microbatch * model.context * model.vocab_size)
        yield f"        and callbacks.auxiliary_loss, not counted: logits take {logits} GB, their gradient as much"
    files = checkpoint_files(plan.config.callbacks["checkpoints"].settings, plan.steps or 0)
    folder = Path(plan.config.run_dir or plan.config.runs_dir).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
    size = gigabytes((plan.hardware.devices if plan.strategy == "fsdp" else 1) * (memory.weights + memory.optimizer))
    yield f"disk:   {files} checkpoints of {size} GB at most, {gigabytes(free)} GB are free"


def _strategy_lines(plan: Plan) -> Iterator[str]:
    """The devices of trainer.devices=auto; what several divide, and what they send."""
    if plan.config.trainer.devices in AUTOMATIC:
        yield f"device: {plan.hardware.devices} (trainer.devices={plan.config.trainer.devices})"
    if not (traffic := plan.traffic):
        return
    devices, memory = plan.hardware.devices, plan.memory
    if plan.strategy == "fsdp":
        sharded = plan.config.callbacks["checkpoints"].settings.get("sharded")
        size = gigabytes((1 if sharded else devices) * (memory.weights + memory.optimizer))
        yield f"fsdp:   each of {devices} devices keeps 1/{devices} of weights, gradients and optimizer; a checkpoint"
        yield f"        is {'written by each from' if sharded else 'gathered in'} {size} GB of the CPU's memory"
    else:
        yield f"ddp:    each of {devices} devices keeps all weights, gradients and states"
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in traffic.sent.items())
    yield f"        each device sends {gigabytes(sum(traffic.sent.values()))} GB per step: {parts}; alone that takes"
    taken = ((link.name, traffic.seconds(link)) for link in links())
    times = [f"{name}: {f'{its:.2f} s' if its >= 1 else f'{1e3 * its:.3g} ms'}" for name, its in taken]
    yield f"        {'  '.join(times[:4])}"
    yield f"        {'  '.join(times[4:])}  (conf/devices.yaml)"


def _device_table(plan: Plan) -> str:
    """A line per device: peak, memory, time and cost."""
    several = [f"largest by {plan.strategy}"] if plan.strategy and isinstance(plan.model, GPTConfig) else []
    rows = [["device", "TFLOP/s", "memory", "time", "cost", *several]]
    minutes = plan.config.budget.minutes
    count = 1 if plan.hardware.accelerator == "cpu" else plan.hardware.devices
    this = [plan.device] if is_here(plan.hardware.accelerator) else []
    for device in (*this, *known_devices(count)):
        seconds = plan.seconds if device is plan.device or minutes else plan.work and device.seconds(plan.work)
        cost = device.cost(seconds)
        fits = device.memory is None or plan.memory.peak < device.memory
        rows.append(
            [
                device.name,
                f"{device.flops / 1e12:.3g}" if device.flops else "?",
                f"{device.memory / 1e9:.0f} GB" if device.memory else "?",
                (clock(seconds) if seconds else "?") if fits else "too small",
                money(cost) if fits else "?",
                *(_largest(plan, device.memory) for _ in several),
            ]
        )
    assumed = device_table()
    windows = "" if plan.text.cached else " on random windows"
    rate = f"ten steps{windows} measured on this one; elsewhere " if plan.rate else "not measured (plan=measure does): "
    block, step = 1e3 * assumed["block_seconds"], 1e3 * assumed["step_seconds"]
    share = f"{assumed['utilisation']:.0%} of the peak assumed, on GPUs in 16 bits"
    return (
        f"{columns(rows, right=True)}\n"
        f"Time: {rate}{share} and in proportion less below width {assumed['full_width']},\n"
        f"      at least {block:g} ms per block and {step:g} ms per step; training and validation, without start and "
        "compilation.\n"
        f"Cost: dollars, prices assumed on {assumed['assumed_on']} in conf/devices.yaml; price_per_hour=... is this "
        "machine's."
    )


def _largest(plan: Plan, memory: float | None) -> str:
    """The largest model with the shape of the planned one."""
    if memory is None:
        return "?"
    if not (found := largest(plan.model, plan.memory, memory)):
        return "none"
    return f"{scaled_weights(found).total / 1e6:,.0f}M = {found.depth} x {found.width}"


def sweep_table(jobs: Sequence[tuple[Sequence[str], Plan]]) -> str:
    """Swept keys, sizes, time and cost of each job of a sweep, from its overrides and its plan; and the sums."""
    values = [dict(override.partition("=")[::2] for override in overrides) for overrides, _ in jobs]
    swept = [key for key in values[0] if len({str(value.get(key)) for value in values}) > 1]
    rows = [[*swept, "parameters", "steps", "tokens", "memory GB", "time", "cost"]]
    plans = [plan for _, plan in jobs]
    takes = [(plan.tokens, plan.memory.peak, plan.seconds, plan.device.cost(plan.seconds)) for plan in plans]
    for value, plan, its in zip(values, plans, takes, strict=True):
        sizes = f"{parameters(plan.model).total:,}", "?" if plan.steps is None else f"{plan.steps:,}"
        rows.append([*(value.get(key, "") for key in swept), *sizes, *_cells(*its)])
    tokens, peaks, seconds, costs = zip(*takes, strict=True)
    tokens, seconds, costs = (None if None in column else sum(column) for column in (tokens, seconds, costs))
    total = [f"{len(jobs)} jobs", *[""] * (len(rows[0]) - 5), *_cells(tokens, max(peaks), seconds, costs)]
    assumed = f"{device_table()['utilisation']:.0%} of the peak assumed; plan=measure measures"
    rate = "measured" if all(plan.rate for plan in plans) else assumed
    device = plans[0].device.name.removeprefix("this one, ")
    if rate == "measured" and not all(plan.text.cached for plan in plans):
        rate += " on random windows, as tokens are not in the cache"
    return f"{columns([*rows, total], right=True)}\nOn {device}, one after another; {rate}."


def _cells(tokens: int | None, peak: float, seconds: float | None, cost: float | None) -> list[str]:
    """What a job takes, as it is in the table; ? for what is not known."""
    time = "?" if seconds is None else clock(seconds)
    return ["?" if tokens is None else f"{tokens:,}", gigabytes(peak), time, money(cost)]
