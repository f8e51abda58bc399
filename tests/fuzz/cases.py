"""python cases.py KIND SEED COUNT FOLDER RUN: runs mutated inputs through the program and prints the outcomes as JSON.

An outcome is "accepted", the beginning of a one-line error, or a fault: another exception, a wrong result, a secret of
the environment in a message, or more time than SECONDS. Memory is limited to MEMORY for the whole process.
"""

import gc
import json
import os
import random
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import corpora
import files
import models
import torch
import words

from slm.errors import UserError, printable

SECONDS = 20  # of processor time for one case; most take a hundredth of a second
MEMORY = 2 * 10**9  # bytes
FOREIGN = {
    "checkpoints": files.checkpoints,
    "tokenizers": files.tokenizer,
    "parquet": files.parquet,
    "text": files.text,
    "runs": files.runs,
    "rows": corpora.rows,
    "hub": corpora.hub,
    "huggingface": corpora.huggingface,
    "sentencepiece": corpora.sentencepiece,
    "litdata": corpora.litdata,
    "folders": models.folders,
    "shards": models.shards,
    "instructions": models.instructions,
    "bodies": models.bodies,
}
KINDS = FOREIGN | {"experiments": words.experiments, "train": words.train_words, "generate": words.generate_words}
KINDS |= {"evaluate": words.evaluate_words, "export": words.export_words}


def outcome(case: Callable[[int], None], number: int, foreign: bool) -> tuple[str, str | None]:
    """What became of a case, and its fault."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        case(number)
        result, fault = "accepted", None
    except UserError as error:
        message = printable(" ".join(str(error).split()), 1000)  # as errors.report prints it
        result, fault = re.sub(r"^\S*/\S*|[\d'=].*", "", message)[:40].strip(), None
        if foreign and os.environ["SECRET"] in message:
            fault = "a secret of the environment is in a message"
    except Exception as error:
        where = " ".join(
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]
        )
        result, fault = "fault", f"{type(error).__name__} {str(error)[:200]!r} at {where}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return result, fault


def too_long(*_):
    raise TimeoutError(f"more than {SECONDS} s")


def main():
    kind, seed, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    rng = random.Random(f"{kind}/{seed}")
    (folder / "files").mkdir()
    case = KINDS[kind](rng, folder / "files")
    gc.freeze()  # what was imported is no garbage
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, too_long)
    outcomes: Counter[str] = Counter()
    faults = []
    for number in range(count):
        (folder / "current").write_text(str(number))  # for a case that ends the process
        result, fault = outcome(case, number, kind in FOREIGN)
        outcomes[result] += 1
        if fault:
            faults.append(f"{kind} {seed} case {number}: {fault}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"outcomes": dict(outcomes.most_common()), "faults": faults, "peak": peak}))


if __name__ == "__main__":
    main()
