"""The plan of several devices: against hand-computed cases, torch's own count of a sharded model, and other counts."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import small_run, trained
from test_plan import SMALL, adamw
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from slm.estimate import Weights, parameters, weights
from slm.loss import cross_entropy
from slm.model import GPT
from slm.planning.distributed import Link, ddp_traffic, fsdp_traffic, links
from slm.planning.largest import largest, scaled, scaled_peak, scaled_weights
from slm.planning.memory import training_memory
from slm.run.plan_traffic import exchanged, updates
from slm.training.sharded import shard

DEVICES = 4
COUNTED = replace(SMALL, depth=3, width=128, vocab_size=2048)
SETTINGS = {"microbatch": 2, "device": torch.device("cpu"), "saves": False}


class Sent(TorchDispatchMode):
    """Bytes of whole tensors that collectives gather, or sum and divide."""

    def __init__(self):
        super().__init__()
        self.sizes, self.counts = Counter(), Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = str(operator).rpartition("c10d.")[2].partition(".")[0]
        if name == "_allgather_base_":
            self.sizes["weights"] += args[0].nbytes
        if name == "_reduce_scatter_base_":
            self.sizes["gradients"] += args[1].nbytes
        if name == "alltoall_base_":  # to the other processes: this one is the first
            self.sizes["rows"] += args[1].element_size() * sum(args[4][1:])
        self.counts[name] += 1
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def mesh():
    """Four devices of which this process is one, and the others do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=DEVICES)
    yield dist.init_device_mesh("cpu", (DEVICES,))
    dist.destroy_process_group()


class Trained(GPT):
    """A model whose forward pass is its loss: torch's tracker follows no other method."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        features = GPT.features(self, windows[:, :-1])
        return cross_entropy(features, targets=windows[:, 1:], **self.readout)


def step(model: Trained, optimizer: torch.optim.Optimizer, precision: str):
    windows = torch.randint(model.config.vocab_size, (SETTINGS["microbatch"], model.config.context + 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = model(windows)
    optimizer.zero_grad()  # after the forward pass, as Lightning does
    loss.backward()
    optimizer.step()


def test_what_is_sent_by_hand():
    its = Weights(depth=10, block=7, blocks=70, outside=30, trained=100)
    assert ddp_traffic(its, "32-true", 4).sent == {"gradients": 600}  # 2 x 3/4 of 400 bytes
    assert fsdp_traffic(its, "bf16-mixed", 4, 3).sent == {"weights": 765, "gradients": 900}
    assert fsdp_traffic(its, "32-true", 2, 1).sent == {"weights": 340, "gradients": 200}
    assert updates([(4, 8), (8, 4), (2, 2)], 2, 2) == 2 * (32 + 4)  # the small one goes to either
    there, back = exchanged([32, 32, 4], [0, 1, 0], 2, 4, 2).values()
    assert (there, back) == (4 * (16 + 2), 2 * (16 + 2))  # half of 36 numbers, by either process
    link = Link(name="", bandwidth=100.0, latency=0.5)
    assert ddp_traffic(its, "32-true", 4).seconds(link) == 6 + 4 * 0.5
    assert next(links()).bandwidth == pytest.approx(0.8 * 450e9)


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.slow), "bf16-mixed"])
def test_a_sharded_model_keeps_and_sends_what_is_planned(mesh, precision):
    """Against torch's count of the bytes of a sharded step, and the sizes of its collectives."""
    model = shard(Trained(COUNTED), mesh, precision)
    optimizer = adamw(model)
    step(model, optimizer, precision)
    tracker, sent = FSDPMemTracker(model, optimizer), Sent()
    with tracker, sent:
        step(model, optimizer, precision)
    planned = fsdp_traffic(weights(COUNTED), precision, DEVICES, 1).sent
    blocks = COUNTED.depth  # in each microbatch: gathered twice, summed once, like what is outside of them
    assert sent.counts["_allgather_base_"] == 2 * blocks + 1
    assert sent.counts["_reduce_scatter_base_"] == blocks + 1
    share = (DEVICES - 1) / DEVICES
    assert {name: share * size for name, size in sent.sizes.items()} == pytest.approx(planned, rel=0.01)
    [counted] = tracker.get_tracker_snapshot("peak").values()
    memory = training_memory(COUNTED, adamw, precision=precision, shards=DEVICES, **SETTINGS)
    assert memory.peak - memory.overhead == pytest.approx(counted["Total"], rel=0.06)


@pytest.mark.slow
def test_a_larger_model_of_the_same_shape():
    config = replace(SMALL, depth=4, width=128, kv_heads=2, mlp_width=300)
    settings = {"microbatch": 2, "device": torch.device("cuda"), "precision": "bf16-mixed", "shards": 8}
    counted = training_memory(config, adamw, **settings)
    other = scaled(config, 8)
    assert (other.width, other.depth, other.kv_heads, other.mlp_width) == (256, 8, 4, 600)
    assert scaled_weights(other) == weights(other)
    assert scaled_weights(other).total == parameters(other).total
    assert scaled_peak(config, counted, other) == pytest.approx(training_memory(other, adamw, **settings).peak, rel=0.1)
    found = largest(config, counted, scaled_peak(config, counted, other))
    assert found == other
    assert largest(config, counted, 1e6) is None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_plan_of_eight_devices(monkeypatch, text_file, tmp_path, capsys, strategy):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    words = "plan=true", "trainer=gpu", "trainer.devices=auto", f"trainer.strategy={strategy}", "optimizer=muon"
    assert trained(monkeypatch, *small_run(text_file, tmp_path), "data.batch_windows=16", *words) == 0
    printed = capsys.readouterr().out
    assert f"\ndevice: 8 (trainer.devices=auto)\n{strategy}: " in printed
    assert "Muon's updates" in printed
    assert ("Muon's momenta" in printed) == ("gathered 0." in printed) == (strategy == "fsdp")
    assert "NVLink 4: " in printed
    assert f"largest by {strategy}" in printed
