"""16-mixed, the precision of trainer=rtx4090, without a GPU: float16 autocast on the CPU, with a real GradScaler.

torch has both for CPUs; only slm and Lightning refuse the combination there. The code that meets an overflow in scaler,
guard, optimizer, checkpoints and schedule is the same as on CUDA. Not tested: kernels, and what waits for the device.
"""

from dataclasses import replace

import pytest
import torch
from faults import override as fault
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from test_resume import Killed, assert_same, final_state, resumes_exactly

import slm.run.train
from slm import checkpoint
from slm.errors import Diverged
from slm.files import jsonl, run_folder
from slm.training.callbacks.guard import Guard

FLOAT16 = "trainer.precision=16-mixed"
OVERFLOWS = {"init_scale": 2.0**22, "growth_interval": 1}  # some of ten steps overflow at this size, some do not
NEVER = {"init_scale": 2.0**40, "growth_interval": 1}  # fewer than thirty halvings help nothing
EVERY_STEP = "callbacks.checkpoints.every_n_steps=1", "callbacks.checkpoints.keep_last=20", "callbacks.samples=null"


class Scaler(torch.amp.GradScaler):
    """Counts what Lightning asks of it."""

    def __init__(self, **settings):
        super().__init__("cpu", **settings)
        self.unscaled, self.left_out, self.scales = 0, [], []

    def unscale_(self, optimizer):
        self.unscaled += 1
        super().unscale_(optimizer)

    def update(self, new_scale=None):
        states = self._per_optimizer_states.values()
        self.left_out.append(any(v.item() for state in states for v in state["found_inf_per_device"].values()))
        super().update(new_scale)
        self.scales.append(self.get_scale())


@pytest.fixture
def float16(monkeypatch):
    """A function from the scaler's settings to the list of the scalers that trainings make from then on."""
    real_hardware, real_precision = slm.run.prepare.resolve_hardware, _AcceleratorConnector._check_and_init_precision

    def resolve(accelerator, devices, num_nodes, precision, **options):
        allowed = "32-true" if precision == "16-mixed" else precision
        hardware = real_hardware(accelerator, devices, num_nodes, allowed, **options)
        return replace(hardware, precision=precision if precision == "16-mixed" else hardware.precision)

    def install(**settings) -> list[Scaler]:
        scalers = []

        def precision(connector):
            if connector._precision_flag != "16-mixed":
                return real_precision(connector)
            scalers.append(Scaler(**settings))
            return MixedPrecision("16-mixed", "cpu", scalers[-1])

        monkeypatch.setattr(slm.run.prepare, "resolve_hardware", resolve)
        monkeypatch.setattr(_AcceleratorConnector, "_check_and_init_precision", precision)
        return scalers

    return install


def logged(folder, name):
    """Values by step."""
    return {line["step"]: line[name] for line in jsonl.lines(folder / "metrics.jsonl") if name in line}


def states(folder):
    """The checkpoints, oldest first."""
    return [checkpoint.read(path) for path in reversed(run_folder.checkpoints(folder))]


@pytest.mark.parametrize(("optimizer", "size"), [("adamw", 2), ("muon", 4)])
def test_it_learns_and_unscales_once_a_step(run, float16, optimizer, size):
    scalers = float16()
    learning = f"optimizer={optimizer}", f"trainer.microbatch={size}", "budget.steps=30", "optimizer.lr=1e-2"
    folder = run(FLOAT16, *learning, "callbacks.samples=null")
    (scaler,) = scalers
    losses, norms = logged(folder, "train/loss"), logged(folder, "train/grad_norm")
    assert losses[30] < 0.9 * losses[1]
    assert all(0 < norm < 100 for norm in norms.values() if norm is not None)  # after unscaling: the scale is 65,536
    assert scaler.unscaled == len(scaler.left_out) == 30
    assert sum(scaler.left_out) <= 2  # the usual first scale is hardly too large for this loss
    assert [norm is None for norm in norms.values()] == scaler.left_out


def test_gradients_are_those_of_float32(run, float16):
    """Norms before clipping: neither the loss scale nor accumulation is left in them."""
    float16()
    short = "trainer.microbatch=2", "budget.steps=3", "schedule.warmup_steps=0", "callbacks.samples=null"
    half, single = (
        logged(run(f"trainer.precision={precision}", *short, folder=precision), "train/grad_norm")
        for precision in ("16-mixed", "32-true")
    )
    assert half == pytest.approx(single, rel=0.01)


@pytest.mark.parametrize(("optimizer", "deferred"), [("adamw", True), ("muon", False)])
def test_an_overflow_changes_no_weight_and_is_counted(run, float16, monkeypatch, optimizer, deferred):
    """From the first step on, and it is a step of the schedule, the data and the checkpoints. A GPU checks one late."""
    scalers = float16(**OVERFLOWS)
    monkeypatch.setattr(Guard, "is_deferred", lambda guard: deferred)
    folder = run(FLOAT16, f"optimizer={optimizer}", *EVERY_STEP, "log_every_n_steps=100")
    (scaler,) = scalers
    assert scaler.left_out[0]
    assert not all(scaler.left_out)
    saved = states(folder)
    assert [state["global_step"] for state in saved] == list(range(1, 11))
    assert [state["MixedPrecision"]["scale"] for state in saved] == scaler.scales
    for left_out, before, after in zip(scaler.left_out[1:], saved, saved[1:]):
        same = all(torch.equal(weights, after["state_dict"][name]) for name, weights in before["state_dict"].items())
        assert same == left_out
    overflows, scales = logged(folder, "train/overflows"), logged(folder, "train/loss_scale")
    assert list(overflows.values()) == list(range(1, len(overflows) + 1))
    if deferred:
        assert len(overflows) >= sum(scaler.left_out[:-1]) > 0
    else:
        assert list(overflows) == [step for step, left_out in enumerate(scaler.left_out, 1) if left_out]
        assert scales == {step: scaler.scales[step - 1] for step in overflows}
    assert all(loss > 0 for loss in logged(folder, "train/loss").values())
    assert not (folder / "crash.json").exists()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_overflows_without_end_stop_the_run(run, tmp_path, float16, policy):
    """With a remedy that helps: skipping is what the scaler does already."""
    float16(**NEVER)
    expected = "at step 11 after 10 float16 overflows: .*crash.json; use trainer.precision=bf16-mixed, or 32-true"
    with pytest.raises(Diverged, match=expected) as error:
        run(FLOAT16, f"on_nonfinite={policy}", "budget.steps=20", "callbacks.samples=null")
    assert "on_nonfinite" not in str(error.value)
    assert '"step": 11' in (tmp_path / "run" / "crash.json").read_text()


@pytest.mark.parametrize(("optimizer", "size"), [("adamw", 2), pytest.param("muon", 4, marks=pytest.mark.slow)])
def test_interrupted_equals_uninterrupted_amid_overflows(composed, tmp_path, monkeypatch, float16, optimizer, size):
    """The scale and what it counts are part of the state."""
    scalers = float16(**OVERFLOWS)
    config = composed(
        *(FLOAT16, f"optimizer={optimizer}", "model.dropout=0.1", f"trainer.microbatch={size}", "val_every_n_steps=3"),
        *("callbacks.checkpoints.every_n_steps=4", "callbacks.samples.every_n_steps=4"),
    )
    straight = resumes_exactly(config, tmp_path, monkeypatch, [2 * 4 // size, 5 * 4 // size, 3 * 4 // size])
    assert any(scalers[0].left_out)
    assert not all(scalers[0].left_out)
    scales = [states(folder)[-1]["MixedPrecision"] for folder in (straight, tmp_path / "broken")]
    assert scales[0] == scales[1]


@pytest.mark.parametrize(("optimizer", "deferred"), [("adamw", False), ("muon", True)])
def test_a_loss_that_is_not_finite_is_no_overflow(run, tmp_path, float16, monkeypatch, optimizer, deferred):
    float16()
    monkeypatch.setattr(Guard, "is_deferred", lambda guard: deferred)
    with pytest.raises(Diverged, match="loss nan, gradient norm nan at step 7"):
        run(FLOAT16, f"optimizer={optimizer}", fault("nonfinite"), "callbacks.samples=null")
    assert states(tmp_path / "run")[-1]["global_step"] < 7


@pytest.mark.parametrize(("kind", "optimizer"), [("nonfinite", "muon"), ("spike", "adamw")])
def test_a_skipped_update_leaves_scaler_and_weights_sound(run, float16, kind, optimizer):
    """The gradients are removed between the unscaling and the update."""
    scalers = float16(init_scale=2.0**10)
    skip = f"on_{kind}=skip", "callbacks.guard.spike_window=4"
    folder = run(FLOAT16, f"optimizer={optimizer}", fault(kind, step=9), *skip, *EVERY_STEP)
    eight, nine, ten = states(folder)[-3:]
    assert_same(eight["state_dict"], nine["state_dict"])
    assert_same(*(state["optimizer_states"][0]["state"] for state in (eight, nine)))
    assert logged(folder, "train/skipped") == {9: 1}
    assert any(not torch.equal(nine["state_dict"][name], ten["state_dict"][name]) for name in nine["state_dict"])
    assert scalers[0].left_out[8] == (kind == "nonfinite")


@pytest.mark.parametrize(("policy", "event"), [("warn", "spike"), ("skip", "skipped")])
def test_a_spike_that_overflows_is_a_spike(run, float16, monkeypatch, policy, event):
    """A scale grown so far that ten times the loss overflows, and the loss does not."""
    scalers = float16(init_scale=2.0**10)
    real = Scaler.scale

    def scale(scaler, loss):
        return real(scaler, loss) * (float("inf") if len(scaler.left_out) == 6 else 1)

    monkeypatch.setattr(Scaler, "scale", scale)
    folder = run(FLOAT16, fault("spike"), f"on_spike={policy}", "callbacks.guard.spike_window=4", *EVERY_STEP)
    assert scalers[0].left_out == [step == 7 for step in range(1, 11)]
    assert [(line["step"], line["event"]) for line in jsonl.lines(folder / "events.jsonl")] == [(7, event)]


@pytest.mark.parametrize(("first", "then"), [("16-mixed", "bf16-mixed"), ("32-true", "16-mixed")])
def test_precision_may_change_on_resume(run, monkeypatch, float16, first, then):
    """As the guard itself advises after too many overflows."""
    float16()
    with monkeypatch.context() as patch:
        patch.setattr(Guard, "on_validation_start", killed)
        with pytest.raises(Killed):
            run(f"trainer.precision={first}")
    folder = run(f"trainer.precision={then}")
    assert final_state(folder)[2] == 10
    assert list(logged(folder, "train/loss")) == list(range(1, 11))


def killed(*arguments):
    raise Killed
