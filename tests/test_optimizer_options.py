"""Options of AdamW and Muon, each against formulas written out here, and all together in a run that is killed."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import mistake
from test_model import LATER, model_of
from test_optim import MUON, SETTINGS
from test_plan import SMALL
from test_resume import final_state, resumes_exactly

from slm.optim.adamw import AdamW
from slm.optim.muon import POLAR_EXPRESS, Muon, orthogonalized
from slm.optim.roles import roles, stacked
from slm.planning.memory import training_memory
from slm.training.module import Pretraining

ALL = {"cautious": True, "weight_decay_schedule": "linear", "momentum_warmup": 4}
ALL |= {"iteration": "polar_express", "neuron_normalization": True}


def moved(make, model, steps: int = 4) -> tuple[dict, list[dict]]:
    """The weights after steps with random gradients, some of which are 0, and these gradients."""
    optimizer, generator, given = make(model), torch.Generator().manual_seed(0), []
    for _ in range(steps):
        given.append({name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()})
        given[-1] = {name: (g * (g.abs() > 0.1)).to(model.tokens.weight.dtype) for name, g in given[-1].items()}
        for name, parameter in model.named_parameters():
            parameter.grad = given[-1][name].clone()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}, given


def by_adamw(weight, gradients, decay: float, lr: float, cautious: bool):
    """arXiv:1711.05101, with the mask of arXiv:2510.12402."""
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
        update = (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
        mask = ((update * weight >= 0) | (not cautious)).to(weight.dtype)
        weight = weight - lr * update - lr * decay * mask * weight
    return weight


def by_muon(weight, gradients, *, cautious: bool, iteration: str, neuron_normalization: bool):
    """Keller Jordan's Muon with Nesterov's momentum, and the options as in their papers."""
    mean, square = torch.zeros_like(weight), torch.zeros(len(weight), dtype=weight.dtype)
    for gradient in gradients:
        mean = 0.95 * mean + 0.05 * gradient
        look = 0.05 * gradient + 0.95 * mean
        wide = look.T if len(look) > look.shape[1] else look
        x = wide / wide.norm() / (1 if iteration == "newton_schulz" else 1.01)
        for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5 if iteration == "newton_schulz" else polar_express(1.01):
            x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
        update = x.T if len(look) > look.shape[1] else x
        if neuron_normalization:
            square = 0.95 * square + 0.05 * (update**2).mean(1)
            turned = update / square.sqrt()[:, None]
            update = turned * update.norm() / turned.norm()
        update = update * math.sqrt(max(1, len(weight) / weight.shape[1]))
        mask = ((update * weight >= 0) | (not cautious)).to(weight.dtype)
        weight = weight - 0.02 * update - 0.02 * 0.5 * mask * weight
    return weight


def polar_express(safety: float = 1.0, low: float = 1e-3, cushion: float = 0.02407327424182761) -> list:
    """The quintics whose composition is nearest to 1 on [low, 1], one after the other by Remez' algorithm; the first
    ones do not rise more steeply than for values from `cushion` on (arXiv:2505.16932, section 3)."""
    found, high = [], 1.0
    for _ in range(5):
        least = max(low, cushion * high)
        inner = np.array([(3 * least + high) / 4, (least + 3 * high) / 4])
        for _ in range(50):
            points = np.array([least, *inner, high])
            a, b, c, _ = np.linalg.solve(np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1), np.ones(4))
            inner = np.sqrt((-3 * b + np.array([-1, 1]) * math.sqrt(9 * b * b - 20 * a * c)) / (10 * c))
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        a, b, c = (its * 2 / sum(ends) for its in (a, b, c))  # centred on 1 over the whole interval
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
        found.append((a / safety, b / safety**3, c / safety**5))
    return found


@pytest.mark.parametrize("cautious", [False, True])
def test_adamw_decays_what_the_update_moves_towards_zero(cautious):
    """Also rows of the embedding that no token has read; the vectors do not decay."""
    model = model_of(**LATER).double()
    role, before = roles(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    found, gradients = moved(AdamW(**{**SETTINGS, "weight_decay": 5.0, "lr": 0.01}, cautious=cautious), model)
    for name, weight in before.items():
        decay = 0.0 if role[name] == "vector" else 5.0
        expected = by_adamw(weight, [its[name] for its in gradients], decay, 0.01, cautious)
        torch.testing.assert_close(found[name], expected, atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize(
    "choice", [*itertools.product([False, True], ["newton_schulz", "polar_express"], [False, True])]
)
def test_muon_moves_each_matrix_as_its_papers_say(choice):
    options = dict(zip(("cautious", "iteration", "neuron_normalization"), choice, strict=True))
    model = model_of(kv_heads=2, **LATER).double()
    role, rows = roles(model), stacked(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found, gradients = moved(Muon(**MUON, **options), model)
    for name, weight in before.items():
        its = [given[name] for given in gradients]
        if role[name] == "hidden":
            sizes = rows.get(name, [len(weight)])
            parts = zip(weight.split(sizes), *(gradient.split(sizes) for gradient in its))
            expected = torch.cat([by_muon(part, those, **options) for part, *those in parts])
        else:
            expected = by_adamw(weight, its, 0.0 if role[name] == "vector" else 0.3, 0.01, options["cautious"])
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0, msg=name)


def test_the_published_coefficients_are_the_best_ones():
    np.testing.assert_allclose(POLAR_EXPRESS, polar_express(), rtol=1e-10)


@pytest.mark.parametrize("shape", [(16, 64), (64, 64), (100, 120)])
def test_polar_express_is_nearer_to_an_orthogonal_matrix(shape):
    """Singular values, by SVD: all that are a thousandth of the norm or more lie within the bound of its proof."""
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    reached = values / matrices.norm(dim=(1, 2))[:, None] / 1.01 > 1e-3
    far = {}
    for iteration in ("newton_schulz", "polar_express"):
        inner = u.mT @ orthogonalized(matrices, False, iteration) @ vh.mT
        distance = (inner.diagonal(dim1=1, dim2=2) - 1).abs()
        far[iteration] = distance[reached].mean(), distance[reached].max()
        assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 1e-9  # the vectors stay
    assert far["polar_express"][1] < 0.15 < 0.25 < far["newton_schulz"][1]
    assert far["polar_express"][0] < 0.6 * far["newton_schulz"][0]


def test_settings_of_a_step():
    """By hand: with the learning rate, on a line to zero; Muon's momentum on a line from 0.85."""
    adamw = {"weight_decay": 0.2, "betas": (0.9, 0.95)}
    assert AdamW(**SETTINGS).changes(adamw, 5, 10, 0.5) == Muon(**MUON).changes({"momentum": 0.95}, 5, 10, 0.5) == {}
    assert AdamW(**SETTINGS, weight_decay_schedule="lr").changes(adamw, 5, 10, 0.3) == {"weight_decay": 0.2 * 0.3}
    for step, decay in {0: 0.2, 5: 0.1, 10: 0.0, 12: 0.0}.items():
        found = AdamW(**SETTINGS, weight_decay_schedule="linear").changes(adamw, step, 10, 0.3)
        assert found == {"weight_decay": pytest.approx(decay)}
    for step, momentum in {0: 0.85, 2: 0.9, 4: 0.95, 9: 0.95}.items():
        muon = Muon(**MUON, momentum_warmup=4)
        found = muon.changes({"momentum": 0.95, "weight_decay": 0.5}, step, 10, 1.0)
        assert found == {"momentum": pytest.approx(momentum)}
        assert muon.changes(adamw, step, 10, 1.0) == {}
    with mistake("weight_decay_schedule=linear needs the number of steps"):
        AdamW(**SETTINGS, weight_decay_schedule="linear").changes(adamw, 0, -1, 1.0)
    with mistake("momentum_warmup=4 begins at a momentum of 0.85, so optimizer.momentum=0.5 must be at least that"):
        Muon(**{**MUON, "momentum": 0.5}, momentum_warmup=4)


def test_all_options_in_a_run_that_is_killed(composed, tmp_path, monkeypatch):
    """With muP, clipping and accumulation; each step has the settings of its place in the run, killed or not."""
    seen, real = [], Pretraining.configure_gradient_clipping

    def clip(self, optimizer, **settings):
        seen.append([[group.get(key) for key in ("momentum", "weight_decay")] for group in optimizer.param_groups])
        real(self, optimizer, **settings)

    monkeypatch.setattr(Pretraining, "configure_gradient_clipping", clip)
    config = composed(
        *("optimizer=muon", "optimizer.weight_decay=0.4", "trainer.microbatch=2", "trainer.gradient_clip_val=0.1"),
        *("parametrization=mup", "model.base_width=16", "callbacks.checkpoints.every_n_steps=4"),
        *("callbacks.samples=null", "val_every_n_steps=5", *(f"optimizer.{key}={ALL[key]}" for key in ALL)),
    )
    straight = resumes_exactly(config, tmp_path, monkeypatch, [2, 11, 5])
    momenta, decays = zip(*(groups[0] for groups in seen[:10]))
    assert momenta == pytest.approx([0.85, 0.875, 0.9, 0.925, *[0.95] * 6])
    assert decays == pytest.approx([0.4 * (1 - step / 10) for step in range(10)])
    adamw = [[group[1] for group in groups[1:]] for groups in seen[:10]]  # embedding and head; vectors
    assert adamw == [[pytest.approx(0.01 * (1 - step / 10)), 0.0] for step in range(10)]
    state = final_state(straight)[1][0]["state"].values()
    assert sum("row_squares" in its for its in state) == sum("momentum" in its for its in state) > 0


def test_a_plan_counts_the_rows():
    """NorMuon keeps a number for each row of a hidden matrix."""
    settings = {"microbatch": 2, "device": torch.device("cpu"), "precision": "32-true"}
    plain, normal = (
        training_memory(SMALL, Muon(**MUON, neuron_normalization=its), **settings).optimizer for its in (False, True)
    )
    rows = 2 * (3 * 64 + 64 + 4 * 64 + 64)
    assert normal - plain == 4 * rows
