"""Log-probabilities against torch's own, and texts that go on where they were stopped."""

import pytest
import torch
from test_stream import GREEDY, run, tiny

from slm.errors import UserError
from slm.generation.prompt import Prompt, encode_prompt
from slm.generation.sampling import Sampler
from slm.generation.scores import generate_scored, text_scores
from slm.tokenizers.bytes import ByteTokenizer

SETTINGS = {"eos": None, "seed": 3, "max_new_tokens": 6}


def test_scores_are_the_models_own_whatever_the_sampler():
    """Of two prompts of different lengths, against one pass without a cache over each whole text."""
    model, prompts = tiny(context=16), [Prompt(ids=[1, 2, 3]), Prompt(ids=[4, 5, 6, 7, 8])]
    texts = {0: [1, 2, 3], 1: [4, 5, 6, 7, 8]}
    sampler = Sampler(temperature=2.0, top_k=4)
    steps = list(generate_scored(model, prompts, sampler=sampler, top=3, **SETTINGS))
    found = {row: [scored for step in steps for scored in step if scored.row == row] for row in texts}
    for row, ids in texts.items():
        whole = [*ids, *(scored.token for scored in found[row])]
        expected = model.eval()(torch.tensor([whole])).log_softmax(-1)[0].float()
        for place, scored in enumerate(found[row], len(ids)):
            assert scored.logprob == pytest.approx(expected[place - 1, whole[place]].item(), abs=1e-5)
            values, best = expected[place - 1].topk(3)
            assert [token for token, _ in scored.top] == best.tolist()
            assert [value for _, value in scored.top] == pytest.approx(values.tolist(), abs=1e-5)
        again = text_scores(model, whole, top=3)
        assert [scored.token for scored in again] == whole[1:]
        assert [s.logprob for s in again[len(ids) - 1 :]] == pytest.approx([s.logprob for s in found[row]], abs=1e-5)
    unscored = run(model, prompts, sampler=sampler, **SETTINGS)
    assert unscored == {row: [scored.token for scored in found[row]] for row in found}
    with pytest.raises(UserError, match="the text has 17 tokens, the model reads 16"):
        text_scores(model, [1] * 17, top=1)


@pytest.mark.parametrize("sampler", [GREEDY, Sampler(temperature=1.5)])
def test_a_text_goes_on_as_if_it_had_not_been_stopped(sampler):
    """Also beyond the context, and behind a white space that the first token must spell."""
    model, tokenizer = tiny(context=8, vocab_size=257), ByteTokenizer()
    for prompt in (Prompt(ids=[1, 2, 3]), encode_prompt(tokenizer, "ab ")):
        whole = run(model, [prompt], sampler=sampler, eos=None, seed=3, max_new_tokens=20)[0]
        for stop in (1, 7, 19):
            goes_on = prompt.followed_by(whole[:stop])
            rest = run(model, [goes_on], sampler=sampler, eos=None, seed=3, max_new_tokens=20 - stop)[0]
            assert [*whole[:stop], *rest] == whole


def test_a_rest_is_spelled_by_the_tokens_that_follow():
    prompt = Prompt(ids=[0], rest=b"  x", vocabulary=[b"", b" ", b" x", b"y"])
    assert prompt.followed_by([1]).rest == b" x"
    assert prompt.followed_by([1]).followed_by([2]).rest == b""
    assert prompt.followed_by([1, 2, 3]) == Prompt(
        ids=[0, 1, 2, 3], rest=b"", vocabulary=prompt.vocabulary, generated=3
    )
