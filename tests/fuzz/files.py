"""Cases on files of others: checkpoints, tokenizers, data, and run folders to resume.

Each function returns a case: a function that makes one mutation and uses it, with a right result or a UserError.
"""

import contextlib
import copy
import io
import json
import logging
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import mutations
import pyarrow
import pyarrow.parquet
import torch
from conftest import small_run
from test_foreign_files import Evil, content

from slm import checkpoint, tokenizers
from slm.corpora.jsonl import JsonLines
from slm.corpora.text import Text
from slm.corpora.tinystories import TinyStories
from slm.errors import UserError
from slm.files import atomic, run_folder
from slm.generation.completion import complete
from slm.generation.sampling import Sampler
from slm.run import cli
from slm.run.train import train
from slm.tokenizers.characters import CharacterTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

PROBE = "The cat\n saw  a \u00e9\u2581\U0001f600."
STORY = {"separator": None, "split": "contiguous", "train_ratio": 0.5, "seed": 0}
DOCUMENTS = ["the small cat saw a big dog and then the dog saw the cat"] * 50


def checkpoints(rng: random.Random, folder: Path) -> Callable[[int], None]:
    path, base = folder / "a.ckpt", content()
    base |= {
        "loops": {"fit_loop": {"a": 1}},
        "callbacks": {"a": {"b": [1.0]}},
        "optimizer_states": [{"state": {0: {}}}],
    }
    torch.save(base, path)
    whole = path.read_bytes()

    def case(number: int):
        match number % 8:
            case 0:
                path.write_bytes(mutations.damaged(whole, rng))
            case 1 | 2:
                path.write_bytes(mutations.rezipped(whole, rng))
            case kind:
                raw = copy.copy(base)
                if kind < 6:  # of the part that describes the model
                    raw["slm"] = mutations.changed(base["slm"], rng)
                else:
                    raw = mutations.changed(base, rng)
                if number % 50 == 3:
                    raw["callbacks"] = Evil(Path("executed"))
                try:
                    torch.save(raw, path)
                except (OverflowError, UnicodeEncodeError, TypeError, NotImplementedError):  # not even torch writes it
                    return
        if rng.random() < 0.5:
            atomic.digest_path(path).write_text(f"{atomic.sha256(path)}  {path.name}\n")
        else:
            atomic.digest_path(path).unlink(missing_ok=True)
        loaded = checkpoint.load(path)
        settings = {"sampler": Sampler(temperature=0.8), "max_new_tokens": 4, "seed": 0}
        complete(loaded.model, loaded.tokenizer, ["ab"], **settings)
        assert loaded.step >= 0
        json.dumps([loaded.run_id, loaded.corpus])

    return case


def tokenizer(rng: random.Random, folder: Path) -> Callable[[int], None]:
    saved = [{"tokenizer.json": b'{"kind": "bytes"}'}]
    built = [CharacterTokenizer.build(DOCUMENTS, alphabet=alphabet) for alphabet in ("ascii", "corpus")]
    choices = {"vocab_size": 278, "sample_documents": 50, "seed": 0}
    built += [SentencePieceTokenizer.build(DOCUMENTS, algorithm=name, **choices) for name in ("bpe", "unigram")]
    for one in built:
        one.save(folder / str(len(saved)))
        saved.append({file.name: file.read_bytes() for file in (folder / str(len(saved))).iterdir()})

    def case(number: int):
        files = dict(saved[(1, 2, 3, 3, 3, 4, 4, 4, 3, 0)[number % 10]])
        model, settings = files.get("sentencepiece.model"), files["tokenizer.json"]
        if model and number % 5:
            model = mutations.damaged(model, rng) if number % 5 == 1 else mutations.changed_message(model, rng)
            files["sentencepiece.model"] = model
            file = folder / "sentencepiece.model"
            file.write_bytes(model)
            settings = json.dumps(json.loads(settings) | {"sha256": atomic.sha256(file)}).encode()
        elif rng.random() < 0.3:
            settings = mutations.damaged(settings, rng)
        else:
            settings = json.dumps(mutations.changed(json.loads(settings), rng, plain=True), default=str).encode()
        files["tokenizer.json"] = settings
        for name, data in files.items():
            (folder / name).write_bytes(data)
        loaded = tokenizers.load(folder)
        ids = loaded.encode(PROBE)
        assert all(0 <= token < loaded.vocab_size for token in [*ids, loaded.eos])
        text, _ = loaded.decode(ids), loaded.decode(range(loaded.vocab_size))
        assert text == PROBE or type(loaded) is CharacterTokenizer, "a text is lost"

    return case


def parquet(rng: random.Random, folder: Path) -> Callable[[int], None]:
    (folder / "data").mkdir()
    shards = [folder / "data" / f"{split}-00000-of-00001.parquet" for split in ("train", "validation")]

    def write(columns: dict, **settings):
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), file, **settings)
        return file.getvalue()

    plain = write({"text": DOCUMENTS}, compression="none")
    packed = write({"text": DOCUMENTS, "id": list(range(50))}, compression="snappy", row_group_size=10)
    shards[1].write_bytes(plain)

    def case(number: int):
        data = (plain, packed)[number % 2]
        match number % 4:
            case 0:
                data = mutations.damaged(data, rng)
            case 1 | 2:  # in the description of the columns at the end
                size = int.from_bytes(data[-8:-4], "little")
                footer = mutations.damaged(data[-8 - size : -8], rng)
                data = data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
            case _:
                odd = mutations.value(rng, plain=True)
                with contextlib.suppress(pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
                    data = write({rng.choice(("text", "Text")): rng.choice(([odd], [None, "a"], [b"\xff"], []))})
        shards[0].write_bytes(data)
        settings = {"streaming": False, "repository": "a/b", "revision": "main", "cache": str(folder / "cache")}
        corpus = TinyStories(path=str(folder), **settings)
        corpus.fingerprint()
        for document in corpus.documents("train"):
            document.encode()

    return case


def text(rng: random.Random, folder: Path) -> Callable[[int], None]:
    lines = [json.dumps({"text": f"story {index}: the cat saw ä\u2028", "id": index}) for index in range(20)]
    records = "\n".join(lines).encode()
    prose = "\n\n".join(DOCUMENTS[:20]).encode()

    def case(number: int):
        path = folder / ("a.txt", "a.jsonl")[number % 2]
        if number % 2 == 0:
            data = mutations.damaged(prose, rng)
        elif number % 4 == 1:
            data = mutations.damaged(records, rng)
        else:
            odd = mutations.changed([json.loads(line) for line in lines], rng, plain=True)
            data = "\n".join(map(json.dumps, odd if isinstance(odd, list) else [odd])).encode()
        begin = rng.choice((b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\x1f\x8b", b"\r"))
        path.write_bytes(begin + data)
        separator = rng.choice((None, "\n\n", "\n", "cat"))
        settings = STORY | {"split": rng.choice(("contiguous", "seeded"))}
        if number % 2:
            del settings["separator"]
            corpus = JsonLines(path=str(path), key="text", **settings)
        else:
            corpus = Text(path=str(path), **settings | {"separator": separator})
        corpus.fingerprint()
        for split in ("train", "validation"):
            for document in corpus.documents(split):
                document.encode()

    return case


def runs(rng: random.Random, folder: Path) -> Callable[[int], None]:
    """A run folder, and a checkpoint to resume from, with changed state; a refusal must leave the folder as it was."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    finished, run = Path(sys.argv[5]), folder / "run"
    state = checkpoint.read(run_folder.checkpoints(finished)[0])
    path = run_folder.require_run_json(finished)["config"]["data"]["path"]
    arguments = [*small_run(Path(path), folder), "budget.steps=11", "log_windows=true"]
    config, foreign = cli.compose(arguments), cli.compose([*arguments, f"resume={folder / 'a.ckpt'}"])

    def case(number: int):
        shutil.rmtree(run, ignore_errors=True)
        if number % 2:
            shutil.copytree(finished, run)
            name = rng.choice(
                ("run.json", "run.json", "checkpoints/last.json", "checkpoints/best.json", "metrics.jsonl")
            )
            data = (run / name).read_bytes()
            if rng.random() < 0.5 and name != "metrics.jsonl":
                data = json.dumps(mutations.changed(json.loads(data), rng, plain=True)).encode()
            else:
                data = mutations.damaged(data, rng)
            (run / name).write_bytes(data)
        else:
            raw = dict(state)
            key = rng.choice(
                ("optimizer_states", "optimizer_states", "loops", "callbacks", "WindowsData", "lr_schedulers")
            )
            with contextlib.suppress(OverflowError, UnicodeEncodeError, TypeError, NotImplementedError):
                raw = raw | mutations.changed({key: raw[key]}, rng)  # |= takes a text as pairs
                torch.save(raw, folder / "a.ckpt")
        before = digests(run)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                train(config if number % 2 else foreign, run_dir=run, overrides=[])
        except UserError as error:
            if before and (after := digests(run)) != before:
                changed = sorted(name for name in before | after if before.get(name) != after.get(name))
                raise AssertionError(f"{error} changed {changed[:5]}") from None
            raise

    return case


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): atomic.sha256(path) for path in files}
