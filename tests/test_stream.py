"""Generation against a reference without cache, batch and window arithmetic; streamed and complete texts."""

import random

import pytest
import torch
from test_model import model_of

from slm.errors import UserError
from slm.generation import completion
from slm.generation.completion import Completion, complete, decoded
from slm.generation.prompt import encode_prompt
from slm.generation.reader import window_start
from slm.generation.sampling import Sampler
from slm.generation.stream import generate
from slm.tokenizers.bytes import ByteTokenizer

GREEDY = Sampler(greedy=True)
VOCABULARY, TOKENIZER = 30, ByteTokenizer()


def tiny(context=8, positions="rope", vocab_size=VOCABULARY):
    """Large weights, so that every token matters; dropout, so that eval mode matters."""
    sizes = {"context": context, "vocab_size": vocab_size, "head_dim": 8, "kv_heads": 1}
    model = model_of(**sizes, positions=positions, mlp="swiglu", dropout=0.5, tied=False).double()
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.5)
    return model


def reference(model, prompt, count, *, penalty=1.0, eos=None):
    """Greedy, with a forward pass of the complete window per token. A full context drops its older half."""
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


def run(model, prompts, **settings):
    """Row -> its tokens."""
    texts, defaults = {}, {"sampler": GREEDY, "max_new_tokens": 30, "eos": None, "seed": 0}
    for step in generate(model, prompts, **{**defaults, **settings}):
        for row, token in step:
            texts.setdefault(row, []).append(token)
    return texts


def prompts_of(*lengths):
    draw = random.Random(7)
    return [[draw.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("context", [1, 2, 7, 8, 64])
@pytest.mark.parametrize("length", [1, 3, 8, 9, 40])
def test_greedy_decoding_with_cache_equals_decoding_without(context, positions, length):
    model = tiny(context, positions)
    [prompt] = prompts_of(length)
    expected = reference(model, prompt, 30)
    assert context < 7 or len(set(expected)) > 3, "a model that repeats itself tests nothing"
    assert run(model, [prompt]) == {0: expected}


@pytest.mark.parametrize("lengths", [(), (3, 3, 3), (1, 5, 2, 8), (2, 30, 9), (12, 21)])
def test_prompts_of_different_lengths_share_a_batch(lengths):
    model, prompts = tiny(), prompts_of(*lengths)
    assert run(model, prompts) == {row: reference(model, prompt, 30) for row, prompt in enumerate(prompts)}


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=1.5, top_k=9, min_p=0.01, repetition_penalty=1.2)])
def test_a_row_depends_on_its_number_and_not_on_other_rows(sampler):
    model, prompts = tiny(), prompts_of(4, 1, 19, 4)
    together = run(model, prompts, sampler=sampler, eos=11, seed=3)
    assert len({len(text) for text in together.values()}) > 1, "no row leaves the batch early"
    for row, prompt in enumerate(prompts):
        assert run(model, [prompt], sampler=sampler, eos=11, seed=3, first_row=row) == {row: together[row]}


def until(eos, texts):
    return {row: text[: text.index(eos) + 1] if eos in text else text for row, text in texts.items()}


def test_a_row_stops_after_its_eos_and_other_rows_continue():
    model, prompts = tiny(), prompts_of(2, 6, 3)
    texts = {row: reference(model, prompt, 30) for row, prompt in enumerate(prompts)}
    eos = texts[0][4]
    assert len({len(text) for text in until(eos, texts).values()}) > 1
    assert run(model, prompts, eos=eos) == until(eos, texts)
    expected = reference(model, [9, 4, 9], 5)
    assert 9 not in expected
    assert run(model, [[9, 4, 9]], eos=9, max_new_tokens=5) == {0: expected}, "an eos in the prompt stops the row"


@pytest.mark.parametrize("eos", [None, 3])
def test_the_repetition_penalty_applies_to_prompt_and_text_but_not_to_eos(eos):
    model, prompts = tiny(), [[3, 1, 4], [3, *prompts_of(20)[0]]]
    expected = {row: reference(model, prompt, 30, penalty=1.5, eos=eos) for row, prompt in enumerate(prompts)}
    assert expected != {row: reference(model, prompt, 30) for row, prompt in enumerate(prompts)}
    sampler = Sampler(greedy=True, repetition_penalty=1.5)
    assert run(model, prompts, sampler=sampler, eos=eos) == until(eos, expected)


def test_one_forward_pass_per_step_with_one_token_per_active_row():
    model, shapes = tiny(context=16), []
    model.tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    steps = list(generate(model, prompts_of(3, 5), sampler=GREEDY, max_new_tokens=4, eos=None, seed=0))
    assert [[row for row, _ in step] for step in steps] == [[0], [0], [0, 1], [0, 1], [1], [1]]
    assert shapes == [(2, 3), (2, 1), (2, 1), (2, 1), (1, 1), (1, 1)]
    steps = list(generate(model, prompts_of(1, 9), sampler=GREEDY, max_new_tokens=2, eos=None, seed=0))
    assert [[row for row, _ in step] for step in steps] == [[0], [0], [1], [1]], "steps without a new token are yielded"
    shapes.clear()
    run(model, prompts_of(15), max_new_tokens=5)
    assert shapes == [(1, 15), (1, 1), (1, 9), (1, 1), (1, 1)]  # 9: the newest half of 16, and the new token


def test_a_long_prompt_takes_few_passes_beside_a_short_one():
    """A million ids, of which only the last context is read."""
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


@pytest.mark.parametrize("training", [True, False])
def test_global_state_does_not_change(training):
    """The mode of the model is restored when generation is closed, and after an error."""
    model, modes = tiny().train(training), []
    hook = model.tokens.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    state = torch.random.get_rng_state(), random.getstate()
    steps = generate(model, prompts_of(3, 4), sampler=Sampler(), max_new_tokens=10**6, eos=None, seed=0)
    assert model.training == training
    for _ in range(20):
        next(steps)
        assert not torch.is_inference_mode_enabled()
    assert not model.training
    steps.close()
    assert model.training == training
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert modes == [True] * 20
    hook.remove()
    model(torch.tensor([[1, 2, 3]])).sum().backward()  # fails for inference tensors
    with pytest.raises(TypeError):
        run(model, prompts_of(3), sampler=None)
    assert model.training == training


def test_bfloat16_and_diverged_models():
    model = tiny().bfloat16()
    [text] = run(model, prompts_of(3), sampler=Sampler(top_p=0.9)).values()
    assert len(text) == 30
    with torch.no_grad():
        model.head.weight[3, 3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        run(model, prompts_of(3), sampler=Sampler(top_k=5, top_p=0.5))


def test_wrong_arguments_are_refused_at_the_call():
    for prompt in ([], [VOCABULARY], [-1]):
        with pytest.raises(ValueError, match="at least one id, and only ids below the vocabulary size 30"):
            generate(tiny(), [[1], prompt], sampler=GREEDY, max_new_tokens=1, eos=None, seed=0)
    for count in (0, -1, 2.0, True, None):
        with pytest.raises(UserError, match=r"max_new_tokens=.* must be a whole number from 1"):
            generate(tiny(), [[1]], sampler=GREEDY, max_new_tokens=count, eos=None, seed=0)


# Texts


def pieces(ids):
    return [*decoded(TOKENIZER, ids)]


def test_text_is_streamed_when_a_character_is_complete():
    assert pieces("aé→😀b".encode()) == ["a", "", "é", "", "", "→", "", "", "", "😀", "b", ""]
    assert pieces(b"\xffa\xc3b\xe2\x86") == ["�", "a", "", "�b", "", "", "�"]  # invalid UTF-8
    assert pieces([*b"\xc3", TOKENIZER.eos, *b"\xa9"]) == ["", "", "é", ""]  # eos has no bytes


def test_streamed_text_equals_decoded_text():
    draw, parts = random.Random(0), [*"A\u00e9\u2192\U0001f600".encode(), 0xFF, 0xED, TOKENIZER.eos]
    for _ in range(300):
        ids = draw.choices(parts, k=12)
        assert "".join(pieces(ids)) == TOKENIZER.decode(ids)


def talkative():
    """A model of which some texts end and some do not."""
    model = tiny(context=16, vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():
        model.head.weight[TOKENIZER.eos] *= 3
    return model


def completions(prompts, **settings):
    settings = {"sampler": Sampler(), "max_new_tokens": 25, "seed": 4, **settings}
    return complete(talkative(), TOKENIZER, prompts, **settings)


def test_every_prompt_has_its_samples():
    assert [encode_prompt(TOKENIZER, text).ids for text in ("", "ab ")] == [[256], [256, 97, 98, 32]]
    groups = completions(["ab", "", "x" * 30], num_samples=4)
    assert [[c.prompt for c in group] for group in groups] == [["ab"] * 4, [""] * 4, ["x" * 30] * 4]
    flat = [c for group in groups for c in group]
    assert len({c.text for c in flat}) == 12
    assert {c.finished for c in flat} == {True, False}
    assert all(c.tokens == 25 or (c.finished and c.tokens < 25) for c in flat)
    assert completions(["ab"], num_samples=1, seed=5) != [groups[0][:1]] == completions(["ab"], num_samples=1)
    [group] = completions(["ab"], num_samples=6, stop_at_eos=False)
    assert all(c.tokens == 25 and not c.finished for c in group)
    assert completions([]) == []
    with pytest.raises(UserError, match="num_samples=0 must be a whole number from 1"):
        completions(["a"], num_samples=0)


def test_completions_have_the_generated_text_without_eos():
    settings = {"sampler": Sampler(), "max_new_tokens": 25, "seed": 4}
    rows = run(talkative(), [encode_prompt(TOKENIZER, "a")] * 8, eos=TOKENIZER.eos, **settings)
    [group] = completions(["a"], num_samples=8)
    assert {completion.finished for completion in group} == {True, False}
    for row, ids in rows.items():
        finished = ids[-1] == TOKENIZER.eos
        ids = ids[:-1] if finished else ids
        assert group[row] == Completion(prompt="a", text=TOKENIZER.decode(ids), tokens=len(ids), finished=finished)


def test_completions_depend_neither_on_later_prompts_nor_on_the_batches(monkeypatch):
    expected = completions(["ab", "c", "def"], num_samples=3)
    assert completions(["ab", "c"], num_samples=3) == expected[:2]
    monkeypatch.setattr(completion, "MAX_ROWS", 2)
    assert completions(["ab", "c", "def"], num_samples=3) == expected


def test_completions_are_generated_on_request():
    """A hundred of 10^9."""
    model, prompts = tiny(vocab_size=TOKENIZER.vocab_size), ["ab", *map(str, range(1000))]
    settings = {"num_samples": 10**6, "sampler": Sampler(), "max_new_tokens": 2, "seed": 0}
    texts = completion.completions(model, TOKENIZER, prompts, **settings)
    assert [next(texts).prompt for _ in range(100)] == ["ab"] * 100


class Words(ByteTokenizer):
    """Words of lower-case letters with the space or line end before them are ids of their own, as in a subword
    tokenizer; everything else is bytes."""

    words = (" cat", " ca", "\nthe", "\n\n", "  ", "cat", " the")
    vocab_size, eos = 264, 256

    def token_bytes(self, token):
        return self.words[token - 257].encode() if token > 256 else super().token_bytes(token)

    def encode(self, text):
        """The longest words first."""
        ids = []
        while text:
            word = max((word for word in self.words if text.startswith(word)), key=len, default=None)
            ids += [257 + self.words.index(word)] if word else text[0].encode()
            text = text[len(word or text[0]) :]
        return ids


@pytest.mark.parametrize(
    ("prompt", "kept", "rest"),
    [
        *(("the cat ", "the cat", b" "), ("the", "the", b""), ("a\n", "a", b"\n"), ("a ", "a", b" ")),
        *((" ", "", b" "), ("a  ", "a  ", b""), ("a\n\n", "a\n\n", b""), ("a\t", "a\t", b""), ("a\n ", "a\n", b" ")),
    ],
)
def test_white_space_at_the_end_of_a_prompt_is_left_to_the_tokens_that_begin_with_it(prompt, kept, rest):
    start = encode_prompt(Words(), prompt)
    assert (start.ids, start.rest) == ([256, *Words().encode(kept)], rest)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("prompt", "word"), [("the cat ", " cat"), ("on ", " the"), ("a\n", "\nthe")])
def test_a_prompt_that_ends_in_white_space_is_continued_as_without_it(prompt, word, rows):
    """Where the model's own choice begins with it; otherwise that choice is excluded."""
    tokenizer, model = Words(), tiny(context=16, vocab_size=264)
    settings = {"sampler": GREEDY, "max_new_tokens": 4, "seed": 0, "stop_at_eos": False}

    def text(prompt):
        *_, [found] = complete(model, tokenizer, ["b"] * (rows - 1) + [prompt], **settings)
        streamed = "".join(completion.stream_text(model, tokenizer, prompt, **settings))
        assert (found.prompt, found.text, found.tokens) == (prompt, streamed, 4)
        return found.prompt + found.text

    assert text(prompt).startswith(prompt)
    wanted = 257 + tokenizer.words.index(word)
    bias = model.head.register_forward_hook(lambda module, _, logits: logits.index_fill(-1, torch.tensor(wanted), 1e3))
    assert text(prompt) == text(prompt[:-1]) == prompt[:-1] + 4 * word
    bias.remove()


@pytest.mark.parametrize("settings", [{}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.9}, {"repetition_penalty": 9.0}])
def test_no_setting_of_the_sampler_overrules_the_white_space(settings):
    model = tiny(context=16, vocab_size=264)
    ids = generate(
        model, [encode_prompt(Words(), "a ")] * 40, sampler=Sampler(**settings), max_new_tokens=1, eos=None, seed=1
    )
    assert {Words().token_bytes(token)[:1] for step in ids for _, token in step} == {b" "}


def test_a_text_keeps_its_first_space_where_the_tokenizer_adds_one():
    """`decode` of such a tokenizer removes a space from a document, which a continuation is not."""

    class Adding(ByteTokenizer):
        adds_space = True

        def token_bytes(self, token: int) -> bytes:
            return b" a"

    model, settings = tiny(vocab_size=257), {"sampler": GREEDY, "max_new_tokens": 2, "seed": 0, "stop_at_eos": False}
    [[found]] = complete(model, Adding(), ["ab"], **settings)
    assert found.text == "".join(completion.stream_text(model, Adding(), "ab", **settings)) == " a a"
    [[found]] = complete(model, Adding(), [""], **settings)
    assert found.text == "a a"
