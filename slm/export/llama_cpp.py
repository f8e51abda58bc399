"""What llama.cpp makes of an exported file, beside the model itself, where llama-cpp-python is installed.

llama.cpp runs in a process of its own, because a fault in its kernels ends the process.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from slm.attention import Cache
from slm.export.compared import check_ids, check_logits, difficult_strings, start_of
from slm.generation.language_model import LanguageModel
from slm.tokenizers.sentencepiece import SPACE, SentencePieceTokenizer

PROMPTS = ("", "Once upon a time", "The  old na\u00efve man's 12 cats:\n\n\tsaid \u201cyes\u201d \U0001f600")
STRINGS = 2000  # on which the ids are compared
STEPS = 48  # generated ids
F32 = 0  # GGML_TYPE_F32


def compare(model: LanguageModel, path: Path, tolerance: float) -> str:
    """The difference of ids, logits and greedy texts, in a line. `tolerance`: of logits, as a share of the largest."""
    if find_spec("llama_cpp") is None:
        return "not run by llama.cpp, which pip install llama-cpp-python brings for this comparison"
    name = f"llama.cpp (llama-cpp-python {version('llama_cpp_python')})"
    context = min(model.model.config.context, 512)
    texts = comparable(model)
    ours = [greedy(model, (start_of(model) + model.encode(prompt))[:context], context) for prompt in PROMPTS]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=quiet) as pool:
        try:
            tokens, theirs = pool.submit(evaluated, str(path), context, texts, [ids for ids, _ in ours]).result()
        except BrokenProcessPool:
            return f"{name} ended with a fault of its own while it ran the file; nothing is compared"
    check_ids("llama.cpp", model, texts, tokens)
    found, exactly = np.concatenate(theirs), np.concatenate([logits for _, logits in ours])
    largest, _ = check_logits("llama.cpp", exactly, found, tolerance)
    same = int((found.argmax(-1) == exactly.argmax(-1)).sum())
    return (
        f"{name}: the ids of {len(texts):,} difficult strings are equal; logits after {len(found)} ids differ by at "
        f"most {largest:.1e}; the most likely id is the same after {same} of them"
    )


def comparable(model: LanguageModel) -> list[str]:
    """Difficult strings, without those in which llama.cpp writes U+2581 as a space."""
    texts = difficult_strings(model.tokenizer, STRINGS)
    exact = isinstance(model.tokenizer, SentencePieceTokenizer)
    return [text for text in texts if not (exact and SPACE in text)]


@torch.inference_mode()
def greedy(model: LanguageModel, ids: Sequence[int], context: int) -> tuple[list[int], np.ndarray]:
    """The ids (T,) with up to STEPS more, each the most likely one, and the logits (T, V) after each."""
    ids = list(ids) or [model.tokenizer.eos]
    cache = Cache(model.model.config, 1)
    logits = [model.model(torch.tensor([ids]), cache)[0]]
    for _ in range(min(STEPS, context - len(ids))):
        ids.append(int(logits[-1][-1].argmax()))
        logits.append(model.model(torch.tensor([ids[-1:]]), cache)[0])
    return ids, torch.cat(logits).float().numpy()


def quiet():
    """llama.cpp writes remarks to stderr."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def evaluated(
    path: str, context: int, texts: Sequence[str], sequences: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[np.ndarray]]:
    """llama.cpp's ids of the texts, and its logits (T, V) after each id of the sequences."""
    package = import_module("llama_cpp")
    numbers = {"type_k": F32, "type_v": F32, "logits_all": True}  # float16 would round keys and values
    model = package.Llama(path, n_ctx=context, n_batch=1, n_threads=1, n_gpu_layers=0, verbose=False, **numbers)
    tokens, logits = [model.tokenize(text.encode()) for text in texts], []
    for ids in sequences:
        model.reset()
        model.eval(ids)
        logits.append(model.scores[: len(ids)].copy())
    model.close()
    return tokens, logits
