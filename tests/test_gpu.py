"""On a CUDA device (pytest -m gpu): the properties of the CPU, in the precisions of a GPU."""

from dataclasses import replace

import pytest
import torch
from faults import override as fault
from lightning.pytorch.callbacks import Callback
from test_resume import assert_same, history, resumes_exactly

from slm import checkpoint
from slm.attention import attend
from slm.files import jsonl, run_folder
from slm.generation.completion import complete
from slm.generation.reader import Reader
from slm.generation.sampling import Sampler
from slm.hardware import compile_settings, compiler_works, resolve_hardware
from slm.loss import cross_entropy
from slm.model import GPT
from slm.planning.microbatch import largest_microbatch
from slm.run.trainer import compiled_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # torch's compiler warns about itself, and of float32 without TF32
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


GPU = "trainer.accelerator=gpu"
EXACT = GPU, "trainer.precision=32-true", "trainer.tf32=false"


@pytest.fixture(autouse=True)
def full_precision():
    """Resets the precision of float32 products, which every training sets for the process."""
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_a_training_learns_and_logs_memory(run, precision, optimizer):
    settings = f"optimizer={optimizer}", f"trainer.precision={precision}", "budget.steps=30", "optimizer.lr=1e-2"
    lines = [line for line in jsonl.lines(run(GPU, *settings) / "metrics.jsonl") if "train/loss" in line]
    assert lines[-1]["train/loss"] < 0.7 * lines[0]["train/loss"]
    assert all(0 < line["train/grad_norm"] < 100 for line in lines)  # without the loss scale
    assert all(line["device/memory_gb"] > 0 for line in lines)


@pytest.mark.parametrize("layout", ["packed", "documents"])
@pytest.mark.parametrize("compile", ["true", "false"])
@pytest.mark.parametrize(("optimizer", "workers"), [("adamw", 0), ("muon", 2)])
def test_an_interrupted_run_equals_an_uninterrupted_one(
    composed, tmp_path, monkeypatch, optimizer, workers, compile, layout
):
    settings = f"optimizer={optimizer}", f"data.workers={workers}", "model.dropout=0.1", "trainer.microbatch=2"
    settings += f"trainer.compile={compile}", f"data.layout={layout}"
    config = composed(GPU, "trainer.precision=bf16-mixed", "trainer.deterministic=true", *settings)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    resumes_exactly(config, tmp_path, monkeypatch, [9, 3])


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("compile", ["no", "each number of rows", "any number of rows"])
def test_the_loss_equals_that_of_the_cpu(monkeypatch, compile, softcap):
    """In several chunks, with a vocabulary that is no multiple of 64, for several numbers of rows."""
    monkeypatch.setattr("slm.loss.chunk_rows", lambda *_: 1000)
    torch.manual_seed(0)
    parameters = torch.randn(5000, 64), torch.randn(1001, 64) * 0.1, torch.randn(1001)
    targets = torch.randint(1001, (5000,))
    assert compiler_works(torch.device("cuda", 0))
    row_loss = None if compile == "no" else compiled_loss(varies=compile.startswith("any"))
    for count in (5000, 4999, 640):
        results = []
        for device in ("cpu", "cuda"):
            x, w, b = (p.to(device).requires_grad_() for p in parameters)
            found = row_loss if device == "cuda" else None
            loss = cross_entropy(x[:count], w, targets[:count].to(device), softcap, b, found)
            results.append([t.detach().cpu() for t in (loss, *torch.autograd.grad(loss, (x, w, b)))])
        for ours, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_greedy_texts_equal_those_of_the_cpu(run):
    path, settings = run_folder.checkpoints(run(*EXACT))[0], {"max_new_tokens": 80, "seed": 0}
    texts = []
    for device in ("cpu", "cuda"):
        loaded = checkpoint.load(path, device)
        found = complete(loaded.model, loaded.tokenizer, ["the", "a red"], sampler=Sampler(greedy=True), **settings)
        texts.append([text.text for (text,) in found])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_not_finite_is_skipped(run, precision, optimizer):
    settings = f"trainer.precision={precision}", f"optimizer={optimizer}", "callbacks.checkpoints.every_n_steps=9"
    folder = run(GPU, *settings, fault("nonfinite", step=10), "on_nonfinite=skip")
    nine, ten = (checkpoint.read(path) for path in reversed(run_folder.checkpoints(folder)[:2]))
    assert (nine["global_step"], ten["global_step"]) == (9, 10)
    assert_same(nine["state_dict"], ten["state_dict"])
    assert {"step": 10, "train/skipped": 1} in history(folder)


def test_auto_microbatch_finds_what_fits_into_memory(composed, run):
    """The whole batch of a small model; a part of that of a large one in 4 GB."""
    folder = run(GPU, "trainer.auto_microbatch=true", "data.batch_windows=64")
    assert run_folder.read_run_json(folder)["microbatch"] == 64
    large = replace(composed().model, depth=8, width=512, head_dim=64, context=512, vocab_size=16000)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4e9 / total)
    try:
        size = largest_microbatch(large, 256, resolve_hardware("gpu", 1, 1, "bf16-mixed"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= size < 256
    assert 256 % size == 0


class NoSynchronisation(Callback):
    """Lets torch raise at any synchronisation with the device in steps 4 to 8."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step in range(3, 8):
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_without_metrics_does_not_synchronise(run):
    rare = [f"{key}=10" for key in ("log_every_n_steps", "val_every_n_steps", "callbacks.checkpoints.every_n_steps")]
    settings = "trainer.precision=bf16-mixed", "budget.steps=10", "data.workers=2", "callbacks.samples=null", *rare
    try:
        folder = run(GPU, *settings, f"+callbacks.debug._target_={__name__}.NoSynchronisation")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run_folder.read_run_json(folder)["status"] == "done"


@pytest.mark.parametrize("recompute", ["true", "false"])
@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_a_compiled_training_equals_an_eager_one(run, capsys, layout, recompute):
    """And is compiled: a compiler that works on this machine is part of the test."""
    settings = *EXACT, f"data.layout={layout}", f"model.gradient_checkpointing={recompute}", "model.context=320"
    eager, other = (
        run(*settings, f"trainer.compile={compile}", "budget.steps=6", folder=compile) for compile in ("false", "true")
    )
    assert "does not work here" not in capsys.readouterr().err
    assert run_folder.read_run_json(other)["compiled"]
    for ours, theirs in zip(history(other), history(eager), strict=True):
        ours, theirs = ({k: v for k, v in line.items() if not k.startswith("device/")} for line in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=1e-3)


def compiled_features(model, varies):
    assert compiler_works(torch.device("cuda", 0))
    return torch.compile(model.features, **compile_settings(varies))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "choice", [{}, {"window": [50, None]}, {"positions": "learned"}, {"kv_heads": 1}, {"dropout": 0.1}, {"head_dim": 8}]
)
def test_documents_in_blocks_equal_those_of_a_dense_mask(composed, choice, recompute):
    """Loss and gradients, compiled and eager, for several lengths; FlexAttention is used where it has a kernel."""
    sizes = {"vocab_size": 257, "context": 300, "document_start": 7, "width": 64, "head_dim": 32, "dropout": 0.0}
    torch.manual_seed(0)
    model = GPT(replace(composed().model, **sizes | choice | {"gradient_checkpointing": recompute})).cuda()
    model.train("dropout" in choice)  # in training there is no kernel, and the other mask must still compile
    features = compiled_features(model, varies=True)
    for length in (300, 129, 64):
        tokens = torch.where(torch.rand(4, length + 1) < 0.02, 7, torch.randint(257, (4, length + 1))).cuda()
        found = []
        for compute in (features, model.features):
            model.zero_grad()
            loss = cross_entropy(compute(tokens[:, :-1]), model.head.weight, tokens[:, 1:])
            loss.backward()
            found.append([loss.detach(), *(p.grad for p in model.parameters())])
        tolerance = 0.5 if "dropout" in choice else 1e-4  # other draws
        torch.testing.assert_close(found[0], found[1], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [64, 96, 97])
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_dropout_has_one_mask_for_both_passes(composed, recompute, length):
    """Gradients are those of the function that was computed: the difference quotient along the gradient, with dropout
    drawn anew from the same seed. A mask that differs in the backward pass gives another slope."""
    sizes = {"vocab_size": 257, "context": 128, "dropout": 0.3, "gradient_checkpointing": recompute}
    torch.manual_seed(0)
    model = GPT(replace(composed().model, **sizes)).cuda().train()
    tokens = torch.randint(257, (8, length + 1), device="cuda")
    features = compiled_features(model, varies=length != 64)

    def loss():
        torch.manual_seed(1)
        return cross_entropy(features(tokens[:, :-1]), model.head.weight, tokens[:, 1:])

    loss().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    square, values = sum(g.double().square().sum().item() for g in gradients), []
    step = 0.02 / square  # changes the loss by 0.02
    for sign in (1, -2):
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.add_(gradient, alpha=sign * step)
        values.append(loss().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(square, rel=0.1)


def test_attention_dropout_has_one_mask_for_both_passes():
    """With its mask fixed, attention is linear in the values: (A v) u = v (A^T u)."""
    q, k, v, u = (torch.randn(4, 4, 128, 32, device="cuda") for _ in range(4))
    v.requires_grad_()
    y = torch.compile(lambda v: attend(q, k, v, dropout=0.3))(v)
    (y * u).sum().backward()
    assert (v.grad * v).sum().item() == pytest.approx((y * u).sum().item(), rel=1e-3)


@pytest.mark.parametrize("compile", ["true", "false"])
def test_gradient_checkpointing_saves_memory(run, compile):
    peaks = []
    for recompute in ("false", "true"):
        model = f"model.gradient_checkpointing={recompute}", "model.depth=8", "model.width=256", "model.context=128"
        batch = "data.batch_windows=64", "trainer.microbatch=64", "budget.steps=3"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        compiled = "trainer.precision=bf16-mixed", f"trainer.compile={compile}"
        run(GPU, *compiled, *model, *batch, folder=recompute)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.8 * peaks[0]


def test_cuda_graphs_generate_the_same_texts(run, monkeypatch):
    """Sampled, in many rows that end at different steps, and beyond the context."""
    loaded = checkpoint.load(run_folder.checkpoints(run(*EXACT))[0], "cuda")
    settings = {"sampler": Sampler(), "max_new_tokens": 150, "seed": 0, "num_samples": 6}
    graphs = complete(loaded.model, loaded.tokenizer, ["the", "a red dog", ""], **settings)
    monkeypatch.setattr("slm.generation.stream.GraphReader", Reader)
    plain = complete(loaded.model, loaded.tokenizer, ["the", "a red dog", ""], **settings)
    same = [a.text == b.text for one, other in zip(graphs, plain) for a, b in zip(one, other)]
    assert sum(same) >= len(same) - 1  # other kernels round differently, which may change one sampled id


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer.precision": "bf16-mixed"},
        {"trainer.precision": "bf16-mixed", "model.gradient_checkpointing": "true"},
        {"trainer.precision": "bf16-mixed", "optimizer": "muon"},
        {"trainer.precision": "16-mixed", "vocab": 50257, "model.tied": "false"},
        {"trainer.precision": "bf16-mixed", "model.context": 1024, "model.mlp": "swiglu", "model.norm": "rmsnorm"},
    ],
)
def test_the_planned_peak_is_that_of_torchs_allocator(planned_and_measured, changes):
    large = {"vocab": 16000, "model.width": 384, "model.depth": 6, "model.context": 512, "trainer.microbatch": 8}
    planned, measured = planned_and_measured(large | changes, "cuda")
    assert planned == pytest.approx(measured, rel=0.15)
