"""Standard tests: log-likelihoods against plain ones, and harness's tasks against its own adapter for Hugging Face."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import exit_code
from test_model import PLAIN, model_of, moved

from slm import evaluate
from slm.analysis import evaluation_page
from slm.evaluation.continuations import Continuation, log_likelihoods
from slm.generation.language_model import LanguageModel
from slm.model import GPT, GPTConfig
from slm.tokenizers.bytes import ByteTokenizer

NAMES = ("fox", "dog", "cat", "hen", "owl", "pig")
TASKS = {  # name -> its documents, and its YAML
    "tiny_choice": (
        [
            {"text": f"Once there was a {name}. The {name}", "choices": [" ran.", " was happy.", " hid."], "best": 0}
            for name in NAMES
        ],
        'output_type: multiple_choice\ndoc_to_text: "{{text}}"\ndoc_to_choice: choices\ndoc_to_target: best\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    ),
    "tiny_pairs": (
        [{"good": f"The {name} was happy.", "bad": f"The {name} were happy."} for name in NAMES],
        'output_type: multiple_choice\ndoc_to_text: ""\ndoc_to_choice: "{{[good, bad]}}"\ndoc_to_target: 0\n'
        "metric_list:\n  - metric: acc\n",
    ),
    "tiny_last": (
        [
            {"text": f"One day the {name} went to the park. " * times + "It ran", "word": " home"}
            for name, times in zip(NAMES, (1, 2, 30))
        ],
        'output_type: loglikelihood\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{word}}"\n'
        "metric_list:\n  - metric: perplexity\n  - metric: acc\n",
    ),
    "tiny_rolling": (
        [{"text": " ".join([f"The {name} went home."] * times)} for name, times in zip(NAMES, (1, 4, 20))],
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n",
    ),
    "tiny_texts": (
        [{"prompt": f"Once there was a {name}", "answer": "."} for name in NAMES],
        'output_type: generate_until\ndoc_to_text: "{{prompt}}"\ndoc_to_target: "{{answer}}"\n'
        'generation_kwargs:\n  until: ["e"]\n  max_gen_toks: 12\nmetric_list:\n  - metric: exact_match\n',
    ),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    for name in ("DISABLE_MULTIPROC", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # as the command does, and away again at the end
    monkeypatch.setattr("slm.evaluation.standard_tests._reaches_hub", lambda: False)


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks with their data beside them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, (documents, body) in TASKS.items():
        data = folder / f"{name}.json"
        data.write_text("\n".join(map(json.dumps, documents)))
        files = (
            f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\n  cache_dir: {tmp_path / 'data'}\n"
        )
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\n{files}test_split: test\n{body}metadata: {{version: 2.0}}\n"
        )
    group = (
        "group: tiny\ntask: [tiny_pairs, tiny_choice]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    (folder / "tiny.yaml").write_text(group)
    return folder


@pytest.mark.parametrize("settings", [{"positions": "learned"}, {"window": [5, None]}, {"document_start": 0}])
def test_log_likelihoods_of_batches_equal_those_of_one_text_at_a_time(settings, monkeypatch):
    monkeypatch.setattr("slm.evaluation.continuations.BATCH_IDS", 100)  # several batches
    monkeypatch.setattr("slm.evaluation.continuations.LOGITS", 60)  # and several pieces of logits
    model = moved(model_of(vocab_size=20, context=16, **settings)).eval()
    contexts = [[0], [0, *range(1, 12)], [0, 3, 5], [0, *range(1, 19)]]
    rows = [
        Continuation.after(context, torch.randint(1, 20, (length,)).tolist(), 16)
        for context in contexts
        for length in (1, 3, 2, 7)
    ]
    read = []
    found = log_likelihoods(model, rows, read.append)
    assert sum(read) == len(rows)
    assert len(read) > 1
    for row, (nats, greedy) in zip(rows, found):
        assert len(row.ids) <= 16
        logits = model(torch.tensor([row.ids])).detach()[0, -len(row.targets) :].double()
        expected = sum(logits.log_softmax(-1)[place, target].item() for place, target in enumerate(row.targets))
        assert nats == pytest.approx(expected, abs=1e-4)
        assert greedy == (logits.argmax(-1).tolist() == list(row.targets))


def test_equal_contexts_are_read_once(monkeypatch):
    model, read = model_of(vocab_size=20, context=64).eval(), []
    features = model.features
    monkeypatch.setattr(model, "features", lambda ids, cache=None: read.append(ids.numel()) or features(ids, cache))
    log_likelihoods(model, [Continuation.after(range(1, 20), [choice], 64) for choice in range(4)])
    assert read == [18, 4]  # the context but for its last id, then that id for each of four choices


def gpt2(folder: Path):
    """A GPT-2 of transformers with random weights and its tokenizer in a folder, and the same as a LanguageModel."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from slm.tokenizers.huggingface import HuggingFaceTokenizer

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    settings = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], **settings)
    tokens.train_from_iterator([str(documents) for documents, _ in TASKS.values()], trainer)
    eos = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, **eos).save_pretrained(folder)
    shape = {"n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=tokens.get_vocab_size(), initializer_range=0.3, **shape)
    theirs = transformers.GPT2LMHeadModel(config)
    theirs.save_pretrained(folder)
    sizes = {"vocab_size": config.vocab_size, "context": 40, "width": 32, "depth": 2, "head_dim": 16}
    ours = GPT(GPTConfig(**sizes, positions="learned", norm="layernorm", mlp="gelu_tanh", tied=True, bias=True))
    names = {"wte": "tokens", "wpe": "positions", "h.": "blocks.", "ln_f": "norm", "ln_1": "attention_norm"}
    names |= {"ln_2": "mlp_norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out"}
    names |= {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.out"}
    weights = {}
    for name, weight in theirs.transformer.state_dict().items():
        for their, our in names.items():
            name = our + name.removeprefix(their) if name.startswith(their) else name.replace(f".{their}", f".{our}")
        weights[name] = weight.T if weight.dim() == 2 and name.startswith("blocks") else weight
    assert ours.load_state_dict(weights, strict=False).unexpected_keys == []
    tokenizer = HuggingFaceTokenizer.build(iter(()), path=str(folder))
    return LanguageModel(ours.eval(), tokenizer, folder, 0, {})


@pytest.mark.filterwarnings("ignore")  # of lm_eval and what it imports
@pytest.mark.parametrize("eos_first", [False, True])
def test_every_number_equals_that_of_the_adapter_for_hugging_face(tasks, tmp_path, eos_first, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    from slm.evaluation import standard_tests
    from slm.evaluation.harness import Harness

    model = gpt2(tmp_path / "gpt2")
    theirs = HFLM(
        pretrained=str(tmp_path / "gpt2"),
        device="cpu",
        dtype="float32",
        batch_size=3,
        logits_cache=False,  # which gives wrong numbers for windows that repeat (lm_eval 0.4.13)
        add_bos_token=eos_first,
    )
    ours = Harness(model, eos_first=eos_first)
    names = [name for name in TASKS if not (eos_first and name == "tiny_rolling")]  # HFLM reads two eos there
    responses = []
    for adapter in (ours, theirs):
        loaded = standard_tests._load(standard_tests.Tests(tasks=names, tasks_path=str(tasks), fewshot=None))
        lm_eval.evaluate(adapter, loaded, bootstrap_iters=0, log_samples=False)
        by_task = {name: task.instances for name, task in loaded["tasks"].items()}
        responses.append({name: [instance.resps[0] for instance in found] for name, found in by_task.items()})
    for name in names:
        for our, their in zip(*(found[name] for found in responses), strict=True):
            if isinstance(our, str):
                assert our == their
            else:
                our, their = (torch.tensor(its, dtype=torch.float64) for its in (our, their))
                torch.testing.assert_close(our, their, rtol=0, atol=1e-4)
    assert ours.cut > 0  # the context is shorter than some texts
    assert ours.ties == {"tiny_choice": 0, "tiny_pairs": 0, "tiny_last": 0}


@pytest.mark.filterwarnings("ignore")
def test_the_command_adds_to_evaluation_json(tasks, finished, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "evaluation.json").write_text('{"evaluations": [], "tasks": {"step-000010.ckpt": {"earlier": {}}}}')
    words = [str(run), "tasks=[tiny_choice,tiny_last]", f"tasks_path={tasks}", "limit=4", "fewshot=1", "print=json"]
    assert exit_code(monkeypatch, evaluate.main, *words) == 0
    line = json.loads(capsys.readouterr().out)
    written = json.loads((run / "evaluation.json").read_text())
    assert written == {"evaluations": [], "tasks": {"step-000010.ckpt": {"earlier": {}, **line["tasks"]}}}
    assert "Standard tests" in (run / "report.html").read_text(encoding="utf-8")
    result = line["tasks"]["tiny_choice"]
    assert (result["n"], result["limit"], result["fewshot"], result["version"], result["step"]) == (4, 4, 1, 2.0, 10)
    assert 0 <= result["metrics"]["acc"]["value"] <= 1
    assert result["metrics"]["acc_norm"]["stderr"] is not None


@pytest.mark.filterwarnings("ignore")
def test_ties_are_counted(tasks):
    """A model that knows nothing is right wherever the first choice is the answer."""
    pytest.importorskip("lm_eval")
    from slm.evaluation import standard_tests

    model = GPT(GPTConfig(**{**PLAIN, "vocab_size": 257, "context": 64}))
    torch.nn.init.zeros_(model.head.weight)
    model = LanguageModel(model.eval(), ByteTokenizer(), Path("run"), 0, {})
    results = standard_tests.run(standard_tests.Tests(tasks="tiny", tasks_path=str(tasks)), model)
    assert list(results) == ["tiny", "tiny_pairs", "tiny_choice"]
    assert results["tiny"]["metrics"]["acc"]["value"] == pytest.approx(
        (results["tiny_pairs"]["metrics"]["acc"]["value"] + 1) / 2
    )
    assert results["tiny_choice"]["ties"] == results["tiny_choice"]["n"] == 6
    acc = results["tiny_choice"]["metrics"]["acc"]
    assert (acc["value"], acc["stderr"], acc["high"]) == (1, 0, 1)
    assert acc["low"] == pytest.approx(0.6097, abs=1e-4)  # Wilson: 6 / (6 + 1.96^2)
    assert "of 6 documents the best two choices are equally likely" in standard_tests.page(results)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tasks=[tiny_last,hellaswa]"], "tasks=hellaswa is no task of lm-evaluation-harness; did you mean hellaswag?"),
        (["tasks=tiny_last", "limit=0"], "limit=0 must be at least 1"),
        (["tasks=[tiny_last"], "cannot read tasks; write key=value, and quote"),
        (["tasks=tiny_last", "lmit=3"], "did you mean limit?"),
        (["tasks=tiny_gone"], "where there is a network, with HF_HOME=FOLDER"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_one_line(tasks, finished, words, message, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    (tasks / "tiny_gone.yaml").write_text((tasks / "tiny_last.yaml").read_text().replace("tiny_last", "tiny_gone"))
    assert exit_code(monkeypatch, evaluate.main, str(finished), f"tasks_path={tasks}", *words) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line


def test_the_extra_is_named_where_it_is_missing(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert exit_code(monkeypatch, evaluate.main, str(finished), "tasks=blimp") == 2
    assert 'pip install "slm[eval]"' in capsys.readouterr().err


def test_results_of_others_are_shown_and_never_executed():
    odd = {"<b>": {"metrics": {"acc": {"value": "<b>"}, "f1": 3, "em": {"value": 0.5, "low": [], "high": 1}}, "n": []}}
    shown = evaluation_page.standard_tests({"a": 3, "step-000010.ckpt": odd, "b": {"task": None}})
    assert "<b>" not in shown
    assert shown.count("–") == 2
    assert "0.5000" in shown
    assert evaluation_page.standard_tests([odd]) == evaluation_page.standard_tests(None) == ""
