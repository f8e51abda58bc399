"""Generation against a reference that has no cache, no batch and no window arithmetic; and the text that comes out."""

import random

import pytest
import torch

from slm.errors import UserError
from slm.generation import stream
from slm.generation.reader import window_start
from slm.generation.sampling import Sampler
from slm.generation.stream import (
    Completion,
    TextStream,
    complete,
    encode_prompt,
    generate,
)
from slm.model import GPT, GPTConfig
from slm.tokenizers.bytes import ByteTokenizer

GREEDY = Sampler(greedy=True)
VOCABULARY = 30


def tiny(context=8, positions="rope", vocab_size=VOCABULARY, dropout=0.5):
    """Weights far larger than those of training, so that every token matters; dropout, so that eval mode does."""
    config = GPTConfig(
        vocab_size=vocab_size, context=context, depth=2, width=16, head_dim=8, kv_heads=1, positions=positions,
        norm="rmsnorm", mlp="swiglu", bias=False, dropout=dropout, tied=False,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        model = GPT(config).double()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.5)
    return model


def reference(model, prompt, count, *, penalty=1.0, eos=None):
    """Greedy: the whole window through the model for every token. A full context forgets its older half."""
    model.eval()
    ids, start, context = list(prompt), 0, model.config.context
    for end in range(1, len(prompt) + count):
        if end - start > context:
            start = end - 1 - context // 2
        if end < len(prompt):
            continue
        logits = model(torch.tensor([ids[start:end]]))[0, -1].tolist()
        for seen in set(ids) - {eos}:
            logits[seen] *= 1 / penalty if logits[seen] > 0 else penalty
        ids.append(logits.index(max(logits)))
    return ids[len(prompt) :]


def collect(steps):
    texts = {}
    for step in steps:
        for row, token in step:
            texts.setdefault(row, []).append(token)
    return texts


def run(model, prompts, *, sampler=GREEDY, max_new_tokens=30, eos=None, seed=0, first_row=0):
    return collect(
        generate(
            model, prompts, sampler=sampler, max_new_tokens=max_new_tokens, eos=eos, seed=seed, first_row=first_row
        )
    )


def prompts_of(*lengths):
    draw = random.Random(7)
    return [[draw.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("context", [1, 2, 7, 8, 64])
@pytest.mark.parametrize("length", [1, 3, 8, 9, 40])
def test_greedy_through_the_cache_is_greedy_without(context, positions, length):
    model = tiny(context, positions)
    [prompt] = prompts_of(length)
    expected = reference(model, prompt, 30)
    assert context < 7 or len(set(expected)) > 3, "the model must not be stuck, or nothing is tested"
    assert run(model, [prompt]) == {0: expected}


@pytest.mark.parametrize("lengths", [(3, 3, 3), (1, 5, 2, 8), (2, 30, 9), (12, 21)])
def test_prompts_of_any_lengths_share_a_batch(lengths):
    model, prompts = tiny(), prompts_of(*lengths)
    assert run(model, prompts) == {row: reference(model, prompt, 30) for row, prompt in enumerate(prompts)}


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=1.5, top_k=9, min_p=0.01, repetition_penalty=1.2)])
def test_a_row_depends_on_its_number_and_not_on_its_companions(sampler):
    model, prompts = tiny(), prompts_of(4, 1, 19, 4)
    together = run(model, prompts, sampler=sampler, eos=11, seed=3)
    assert len({len(text) for text in together.values()}) > 1, "rows must leave the batch at different times"
    for row, prompt in enumerate(prompts):
        assert run(model, [prompt], sampler=sampler, eos=11, seed=3, first_row=row) == {row: together[row]}


def test_rows_and_seeds_draw_differently_and_reproducibly():
    model, prompts = tiny(), prompts_of(2) * 3
    first = run(model, prompts, sampler=Sampler(), seed=1)
    assert run(model, prompts, sampler=Sampler(), seed=1) == first
    texts = [*first.values(), *run(model, prompts, sampler=Sampler(), seed=2).values()]
    assert len({tuple(text) for text in texts}) == 6


def test_a_row_stops_after_its_eos_and_the_others_go_on():
    model, prompts = tiny(), prompts_of(2, 6, 3)
    whole = {row: reference(model, prompt, 30) for row, prompt in enumerate(prompts)}
    eos = whole[0][4]
    until_eos = {row: text[: text.index(eos) + 1] if eos in text else text for row, text in whole.items()}
    assert len({len(text) for text in until_eos.values()}) > 1
    assert run(model, prompts, eos=eos) == until_eos


def test_an_eos_in_the_prompt_does_not_stop_the_row():
    model = tiny()
    expected = reference(model, [9, 4, 9], 5)
    assert 9 not in expected
    assert run(model, [[9, 4, 9]], eos=9, max_new_tokens=5) == {0: expected}


@pytest.mark.parametrize("eos", [None, 3])
def test_repetition_penalty_counts_prompt_and_text_but_never_eos(eos):
    model, prompts = tiny(), [[3, 1, 4], [3, *prompts_of(20)[0]]]
    expected = {row: reference(model, prompt, 30, penalty=1.5, eos=eos) for row, prompt in enumerate(prompts)}
    if eos in expected[0] or eos in expected[1]:
        expected = {r: t[: t.index(eos) + 1] if eos in t else t for r, t in expected.items()}
    assert expected != {row: reference(model, prompt, 30) for row, prompt in enumerate(prompts)}
    assert run(model, prompts, sampler=Sampler(greedy=True, repetition_penalty=1.5), eos=eos) == expected


def test_one_forward_pass_per_step_of_one_token_per_running_row():
    model, shapes = tiny(context=16), []
    model.tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    [text] = run(model, prompts_of(2)).values()
    shapes.clear()
    steps = list(generate(model, prompts_of(3, 5), sampler=GREEDY, max_new_tokens=4, eos=None, seed=0))
    assert [[row for row, _ in step] for step in steps] == [[0], [0], [0, 1], [0, 1], [1], [1]]
    assert shapes == [(2, 3), (2, 1), (2, 1), (2, 1), (1, 1), (1, 1)]
    shapes.clear()
    run(model, prompts_of(15), max_new_tokens=5)
    assert shapes == [(1, 15), (1, 1), (1, 9), (1, 1), (1, 1)]  # the newest half of 16, and the new token
    assert len(text) == 30


def test_a_long_prompt_is_read_in_few_passes_also_beside_a_short_one():
    """A million ids: what the context has long forgotten is never read, and no pass is spent on it."""
    model, shapes = tiny(context=16), []

    def read(_, inputs):
        shapes.append(tuple(inputs[0].shape))
        assert len(shapes) <= 10

    hook = model.tokens.register_forward_pre_hook(read)
    short, *_ = prompts_of(3)
    long = prompts_of(50)[0] * 20_000
    texts = run(model, [short, long], max_new_tokens=4)
    hook.remove()
    assert sum(rows * ids for rows, ids in shapes) < 100
    tail = window_start(len(long), 16)
    assert texts == {0: reference(model, short, 4), 1: reference(model, long[tail:], 4)}


def test_counts_have_a_limit():
    for count in (-1, 0, 10**6 + 1, 10**9, 1.0, None, True):
        with pytest.raises(UserError, match=r"max_new_tokens=.* must be a whole number from 1 to 1,000,000"):
            generate(tiny(), [[1]], sampler=GREEDY, max_new_tokens=count, eos=None, seed=0)


def test_completions_come_as_they_are_told(tokenizer):
    """A million samples of a thousand prompts are asked for, and some of them taken."""
    model, prompts = tiny(vocab_size=tokenizer.vocab_size), ["ab", *map(str, range(1000))]
    told = stream.completions(model, tokenizer, prompts, num_samples=10**6, sampler=Sampler(), max_new_tokens=2, seed=0)
    assert [next(told).prompt for _ in range(100)] == ["ab"] * 100


def test_steps_without_a_new_token_are_not_yielded():
    model = tiny(context=64)
    steps = list(generate(model, prompts_of(1, 9), sampler=GREEDY, max_new_tokens=2, eos=None, seed=0))
    assert [[row for row, _ in step] for step in steps] == [[0], [0], [1], [1]]


def test_nothing_outside_is_touched():
    model, modes = tiny().train(), []
    hook = model.tokens.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    state = torch.random.get_rng_state(), random.getstate()
    steps = generate(model, prompts_of(3, 4), sampler=Sampler(), max_new_tokens=10**6, eos=None, seed=0)
    assert model.training
    for _ in range(20):
        next(steps)
        assert not torch.is_inference_mode_enabled()
    assert not model.training
    steps.close()
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert modes == [True] * 20
    hook.remove()
    model(torch.tensor([[1, 2, 3]])).sum().backward()  # no inference tensor was left behind


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored_at_the_end_and_after_an_error(training):
    model = tiny().train(training)
    run(model, prompts_of(3))
    assert model.training == training

    def fail(*_):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        run(model, prompts_of(3), sampler=fail)
    assert model.training == training


def test_a_model_in_bfloat16_generates():
    [text] = run(tiny().bfloat16(), prompts_of(3), sampler=Sampler(top_p=0.9)).values()
    assert len(text) == 30


def test_a_diverged_model_is_reported():
    model = tiny()
    with torch.no_grad():
        model.head.weight[3, 3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        run(model, prompts_of(3), sampler=Sampler(top_k=5, top_p=0.5))


def test_no_prompts_no_tokens():
    assert run(tiny(), []) == {}


@pytest.mark.parametrize("prompt", [[], [VOCABULARY], [-1]])
def test_a_prompt_that_the_model_cannot_read_is_refused_at_once(prompt):
    with pytest.raises(ValueError, match="at least one id, and only ids below the vocabulary size 30"):
        generate(tiny(), [[1], prompt], sampler=GREEDY, max_new_tokens=1, eos=None, seed=0)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_max_new_tokens_is_checked_at_once(count):
    with pytest.raises(UserError, match=r"max_new_tokens=.* must be a whole number from 1"):
        generate(tiny(), [[1]], sampler=GREEDY, max_new_tokens=count, eos=None, seed=0)


# ---- text


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer.build([])


def pieces(tokenizer, ids):
    text = TextStream(tokenizer)
    return [*map(text.add, ids), text.flush()]


def test_text_comes_as_soon_as_a_character_is_whole(tokenizer):
    assert pieces(tokenizer, "aé→😀b".encode()) == ["a", "", "é", "", "", "→", "", "", "", "😀", "b", ""]


def test_invalid_bytes_become_replacement_characters(tokenizer):
    assert pieces(tokenizer, b"\xffa\xc3b\xe2\x86") == ["�", "a", "", "�b", "", "", "�"]
    assert pieces(tokenizer, [*b"\xc3", tokenizer.eos, *b"\xa9"]) == ["", "", "é", ""]  # eos has no bytes


def test_streamed_text_is_decoded_text(tokenizer):
    draw = random.Random(0)
    for _ in range(300):
        ids = draw.choices(
            [0x41, 0xC3, 0xA9, 0xE2, 0x86, 0x92, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0xED, tokenizer.eos], k=12
        )
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_prompt_begins_a_document(tokenizer):
    assert encode_prompt(tokenizer, "ab") == [tokenizer.eos, 97, 98]
    assert encode_prompt(tokenizer, "") == [tokenizer.eos]


def completions(tokenizer, prompts, **settings):
    model = tiny(context=16, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.head.weight[tokenizer.eos] *= 3  # so that some texts end and some do not
    return complete(model, tokenizer, prompts, **{"sampler": Sampler(), "max_new_tokens": 25, "seed": 4, **settings})


def test_complete_gives_every_prompt_its_samples(tokenizer):
    groups = completions(tokenizer, ["ab", "", "x" * 30], num_samples=4)
    assert [[c.prompt for c in group] for group in groups] == [["ab"] * 4, [""] * 4, ["x" * 30] * 4]
    flat = [c for group in groups for c in group]
    assert len({c.text for c in flat}) == 12
    assert {c.finished for c in flat} == {True, False}
    assert all(c.tokens == 25 or (c.finished and c.tokens < 25) for c in flat)


def test_complete_leaves_eos_out(tokenizer):
    model = tiny(context=64, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.head.weight[tokenizer.eos] *= 3
    settings = {"sampler": Sampler(), "max_new_tokens": 25, "seed": 1}
    rows = collect(generate(model, [encode_prompt(tokenizer, "a")] * 8, eos=tokenizer.eos, **settings))
    [group] = complete(model, tokenizer, ["a"], num_samples=8, **settings)
    ended = {row: ids[:-1] for row, ids in rows.items() if ids[-1] == tokenizer.eos}
    assert ended
    for row, ids in ended.items():
        text = tokenizer.decode(ids)
        assert group[row] == Completion(prompt="a", text=text, tokens=len(ids), finished=True)


def test_complete_returns_the_text_that_was_generated(tokenizer):
    model = tiny(context=64, vocab_size=tokenizer.vocab_size)
    expected = tokenizer.decode(reference(model, [tokenizer.eos, 97], 7))
    [[got]] = complete(model, tokenizer, ["a"], sampler=GREEDY, max_new_tokens=7, seed=0)
    assert got == Completion(prompt="a", text=expected, tokens=7, finished=False)


def test_complete_does_not_depend_on_later_prompts_nor_on_how_rows_are_batched(tokenizer, monkeypatch):
    whole = completions(tokenizer, ["ab", "c", "def"], num_samples=3)
    assert completions(tokenizer, ["ab", "c"], num_samples=3) == whole[:2]
    monkeypatch.setattr(stream, "MAX_ROWS", 2)
    assert completions(tokenizer, ["ab", "c", "def"], num_samples=3) == whole


def test_complete_can_read_on_past_eos(tokenizer):
    [group] = completions(tokenizer, ["ab"], num_samples=6, stop_at_eos=False)
    assert all(c.tokens == 25 and not c.finished for c in group)


def test_complete_of_nothing_is_nothing(tokenizer):
    assert completions(tokenizer, []) == []
    with pytest.raises(UserError, match="num_samples=0 must be a whole number from 1"):
        completions(tokenizer, ["a"], num_samples=0)
