"""Processes that divide the work of Muon, or every weight (FSDP2), reach what one process reaches."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from forks import collective, forked
from test_distributed import small  # noqa: F401  (a fixture)
from test_model import LATER, model_of
from test_optim import MUON
from test_optimizer_options import ALL
from test_plan_devices import COUNTED, DEVICES, Sent, mesh  # noqa: F401  (a fixture)
from test_resume import final_state, history
from torch.distributed.tensor import DTensor

import slm.run.prepare
from slm import verify
from slm.files import run_folder
from slm.model import GPT
from slm.optim import shares
from slm.optim.muon import Muon
from slm.optim.shares import divided, is_divided, newton_schulz_cost, part_of, rounds, stacked_cost, whole
from slm.planning.memory import _Allocations
from slm.run.plan_traffic import exchanged
from slm.training.sharded import gathered, gathered_model, shard


def trains(processes: int, *arguments: str, strategy: str = "ddp"):
    """Runs train.py as so many processes of one run, which must end well."""
    done = forked(*arguments, f"trainer.devices={processes}", f"trainer.strategy={strategy}")
    assert done.returncode == 0, done.stderr


def losses(folder) -> list[float]:
    keys = "train/loss", "val/loss", "train/grad_norm"  # which is above 1, so that all gradients are clipped
    return [line[key] for line in history(folder) for key in keys if line.get(key) is not None]


def assert_near(a, b, tolerance: float):
    """Two checkpoints: weights, and the optimizer's state of each."""
    (weights, optimizers, step), (others, their_optimizers, their_step) = final_state(a), final_state(b)
    assert step == their_step
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=tolerance, rtol=0, msg=name)
    states, their_states = optimizers[0]["state"], their_optimizers[0]["state"]
    assert states.keys() == their_states.keys()
    for place, state in states.items():
        for name, value in state.items():
            torch.testing.assert_close(their_states[place][name], value, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "strategies"), [("muon", ["ddp", "fsdp"]), ("adamw", ["fsdp"])])
def test_two_processes_equal_one(small, tmp_path, optimizer, strategies):  # noqa: F811
    """Also in averaged weights, with clipping and accumulation, and in samples."""
    run = [*small, f"optimizer={optimizer}", "callbacks=ema", "callbacks.ema.decay=0.5"]
    run += ["callbacks.samples.every_n_steps=5", "model.tied=true", "model.residual_scalars=true"]
    trains(1, *run, f"run_dir={tmp_path / 'one'}")
    for strategy in strategies:
        two = tmp_path / strategy
        trains(2, *run, f"run_dir={two}", strategy=strategy)
        assert losses(two) == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
        assert_near(tmp_path / "one", two, 1e-5 if optimizer == "muon" else 1e-3)  # biases go by AdamW
        for name in ("windows.jsonl", "samples.jsonl"):
            assert (tmp_path / "one" / name).read_text() == (two / name).read_text()
        assert list(verify.find_problems(two)) == []


@pytest.mark.slow
def test_in_each_precision(small, tmp_path, monkeypatch):  # noqa: F811
    """Also float16, which slm and Lightning refuse on a CPU: torch has autocast and a scaler of the loss for it."""
    resolve = slm.run.prepare.resolve_hardware

    def resolved(accelerator, devices, nodes, precision, **settings):
        return replace(resolve(accelerator, devices, nodes, "32-true", **settings), precision=precision)

    monkeypatch.setattr(slm.run.prepare, "resolve_hardware", resolved)
    run = [*small, "budget.steps=4", "callbacks.samples=null"]
    trains(1, *run, f"run_dir={tmp_path / 'one'}")
    expected = losses(tmp_path / "one")
    for precision, near in {"bf16-mixed": 3e-3, "bf16-true": 3e-3, "16-mixed": 1e-3, "64-true": 1e-5}.items():
        two = tmp_path / precision
        trains(2, *run, f"run_dir={two}", f"trainer.precision={precision}", strategy="fsdp")
        assert losses(two) == pytest.approx(expected, rel=near)
        assert losses(two) != expected
        state = torch.load(run_folder.checkpoints(two)[0], weights_only=True)
        assert state.get("MixedPrecision", {}).get("scale", 0) == (65536 if precision == "16-mixed" else 0)


def test_an_overflow_in_one_process_skips_the_update_of_all():
    def work(rank: int):
        model = shard(model_of(), dist.init_device_mesh("cpu", (2,)), "16-mixed")
        scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=1.0)
        scaler.scale(torch.ones(()))
        for overflow in (True, False):
            before = [parameter.to_local().clone() for parameter in model.parameters()]
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            if overflow and rank == 1:
                model.head.weight.grad.to_local().fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
            changed = [not torch.equal(old, new.to_local()) for old, new in zip(before, model.parameters()) if len(old)]
            assert set(changed) == {not overflow}

    collective(2, work)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about its compiler
def test_compiled_with_recomputed_blocks(small, tmp_path):  # noqa: F811
    run = [*small, "budget.steps=4", "callbacks.samples=null"]
    trains(1, *run, f"run_dir={tmp_path / 'one'}")
    more = "trainer.compile=true", "model.gradient_checkpointing=true"
    trains(2, *run, *more, f"run_dir={tmp_path / 'two'}", strategy="fsdp")
    assert run_folder.read_run_json(tmp_path / "two")["compiled"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recompute", [False, True])
def test_all_blocks_are_one_graph(mesh, recompute):  # noqa: F811
    """Compiled before they are sharded, and without a break: hooks of FSDP2 stay outside of the graph."""
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    model = GPT(replace(COUNTED, gradient_checkpointing=recompute))
    for block in model.blocks:
        block.compile(backend="aot_eager")  # no code is generated
    shard(model, mesh, "32-true")
    for _ in range(2):
        model.features(torch.randint(17, (2, 12))).sum().backward()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


class Allocated(_Allocations):
    """Counts what a process allocates: not tensors that are there before, and parts of divided ones instead of them."""

    def __init__(self, *before: torch.Tensor):
        super().__init__()
        for tensor in before:
            self.parts[tensor.to_local().untyped_storage()] = ["before"]

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        return super().__torch_dispatch__(operator, types, args, kwargs)


@pytest.mark.parametrize("of_model", [False, True])
def test_whole_weights_are_kept_by_one_process(mesh, of_model):  # noqa: F811
    """The others hold one of them at a time: its parts, and the whole."""
    model = shard(GPT(replace(COUNTED, vocab_size=64, depth=6)), mesh, "32-true")
    parts, sizes = list(model.parameters()), [4 * parameter.numel() for parameter in model.parameters()]

    def gather(keep: bool):
        return gathered_model(model, keep) if of_model else gathered({"state_dict": model.state_dict()}, keep)

    with Allocated(*parts) as memory:
        found = gather(False)
    assert memory.highest.total() <= 3.1 * max(sizes) < sum(sizes) / 5
    assert found is None if of_model else not any(found["state_dict"].values())
    with Allocated(*parts) as memory:
        found = gather(True)
    assert sum(sizes) <= memory.live.total() <= memory.highest.total() <= sum(sizes) + 4 * max(sizes)


def muon_steps(model: GPT, options: dict) -> dict[str, torch.Tensor]:
    """The weights after two steps with random gradients."""
    optimizer, generator = Muon(**MUON, **options)(model), torch.Generator().manual_seed(0)
    for _ in range(2):
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = part_of(gradient, parameter) if is_divided(parameter) else gradient
        optimizer.step()
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("numbers", "options"), [(1, {}), (3000, {}), (3000, ALL)])
def test_divided_matrices_take_the_steps_of_whole_ones(tmp_path, monkeypatch, numbers, options):
    """By three processes, among which some rows are not divided evenly, in rounds of one or a few matrices."""
    monkeypatch.setattr(shares, "ROUND", numbers)
    begin, expected = dict(model_of(**LATER).named_parameters()), muon_steps(model_of(**LATER), options)

    def work(rank: int):
        shared = muon_steps(model_of(**LATER), options)
        assert all(torch.equal(shared[name], weight) for name, weight in expected.items())
        found = muon_steps(shard(model_of(**LATER), dist.init_device_mesh("cpu", (3,)), "32-true"), options)
        torch.save(found, tmp_path / f"{rank}")

    collective(3, work)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}", weights_only=True)
        for name, weight in expected.items():
            largest = (weight - begin[name]).abs().max().item()
            torch.testing.assert_close(found[name], weight, atol=1e-6 * largest, rtol=0, msg=name)


def test_muon_gathers_a_few_matrices_at_a_time(mesh, monkeypatch):  # noqa: F811
    """A process holds its rows of all updates and, several times, the matrices of a round."""
    peaks = {}
    for numbers in (1, 10**9):
        monkeypatch.setattr(shares, "ROUND", numbers)
        model = shard(GPT(replace(COUNTED, vocab_size=17, depth=8)), mesh, "32-true")
        optimizer = Muon(**MUON)(model)
        hidden = [4 * parameter.numel() for parameter in optimizer.param_groups[0]["params"]]
        for _ in range(2):  # the first one makes the state
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            state = [value for its in optimizer.state.values() for value in its.values() if is_divided(value)]
            with (
                Allocated(*model.parameters(), *(p.grad for p in model.parameters()), *state) as memory,
                Sent() as sent,
            ):
                optimizer.step()
        peaks[numbers] = memory.highest.total() - sum(hidden) / DEVICES
        owners = divided([stacked_cost(rows, COUNTED.width) for rows in optimizer.param_groups[0]["rows"]], DEVICES)
        planned = exchanged([size // 4 for size in hidden], owners, DEVICES, 4, 4)
        assert 0.75 * sum(planned.values()) <= sent.sizes["rows"] <= sum(planned.values())  # of one process; the most
    assert peaks[1] <= 7 * max(hidden)
    assert peaks[10**9] >= 20 * max(hidden)


def test_a_round_has_a_few_matrices(monkeypatch):
    monkeypatch.setattr(shares, "ROUND", 10)
    owners, sizes = [0, 1, 0, 0, 1, 0], [4, 11, 6, 9, 2, 2]
    assert [*rounds(owners, sizes, 2)] == [[[0, 2], [1]], [[3], [4]], [[5], []]]


def test_work_is_divided_by_its_size():
    """No process has more than the mean and the largest piece; equal pieces are shared out evenly."""
    costs = [newton_schulz_cost(*shape) for shape in [(64, 64)] * 7 + [(64, 256)] * 5 + [(256, 1024)]]
    for processes in (1, 2, 3, 16):
        owners = divided(costs, processes)
        loads = [sum(c for c, owner in zip(costs, owners) if owner == process) for process in range(processes)]
        assert max(loads) <= sum(costs) / processes + max(costs)
    assert sorted(divided([5] * 8, 4)) == [0, 0, 1, 1, 2, 2, 3, 3]
