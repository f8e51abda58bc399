"""Tokens per second of one text as a reader gets it: generate.py, serve=openai, ui=web and format=page, alternating.

    pip install -e ".[dev,serve,web]"; python benchmarks/show.py --ckpt runs/quickstart

Each way writes stories of the same model to their end, the same ones but for format=page, whose random numbers are its
own; the time is from the request to the last token on the screen. The pages are shown by a headless Chromium, drawing
included; in format=page the browser itself computes, with 8 bits per weight, all others with --dtype.
"""

import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from measure import ROOT, argument_parser, in_turn, machine, one_line_errors, parsed, ratio, table

from slm.export.page import export
from slm.generation.language_model import LanguageModel, load

sys.path.insert(0, str(ROOT / "tests"))
from browser import browser
from served import served

PROMPT, TOKENS = "Once upon a time", 1000  # a limit that no story reaches
WRITTEN = """await new Promise((done) => {
  const begun = performance.now();
  const look = setInterval(() => {
    const count = %s;
    if (!count) return;
    clearInterval(look);
    done(count / ((performance.now() - begun) / 1000));
  }, 5);
  document.querySelector('%s').click();
})"""  # tokens per second after a click, once an expression is a number of tokens
FACTS = "document.querySelector('.facts')?.textContent"
OF_WEB = f"Number(/^(\\d+) tokens.* seed %d, (?:ended|at)/.exec({FACTS})?.[1])"
OF_PAGE = "!running && tokens.filter((token) => !token.given).length"


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--ckpt", default="latest")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"])
    arguments = parsed(parser)
    loaded = load(arguments.ckpt, device="cpu", dtype=arguments.dtype)
    words = f"ckpt={loaded.path}", "device=cpu", f"dtype={arguments.dtype}", f"max_new_tokens={TOKENS}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        api = stack.enter_context(served(*words, "serve=openai"))
        web, page = (stack.enter_context(browser(folder / name)) for name in ("web", "page"))
        web.open(stack.enter_context(served(*words, "ui=web", f"prompt={PROMPT}", "seed=0")))
        web.until("!!document.querySelector('#another')")
        export(load(loaded.path, device="cpu"), folder, start=PROMPT)
        page.open(next(folder.glob("*.html")).as_uri())
        page.until("!running && tokens.length")
        page.evaluate(f"find('tokens').value = {TOKENS}")
        ways = {
            "generate.py": by_seed(lambda seed: streamed(loaded, seed)),
            "serve=openai, streamed": by_seed(lambda seed: asked(api, seed)),
            "ui=web in Chromium": by_seed(lambda seed: web.evaluate(WRITTEN % (OF_WEB % seed, "#another"))),
            "format=page in Chromium": lambda: page.evaluate(WRITTEN % (OF_PAGE, "#again")),
        }
        values = in_turn(ways, arguments.rounds)
    first = values["generate.py"]
    lines = [[way, f"{statistics.median(rates):,.0f}", f"{ratio(rates, first):.2f}"] for way, rates in values.items()]
    print(f"{machine('cpu')}; {loaded.path.name}, {arguments.dtype}")
    print(table(["", "tokens/s", "of generate.py"], lines))


def by_seed(way: Callable[[int], float]) -> Callable[[], float]:
    """The way with seeds from 1."""
    seeds = count(1)
    return lambda: way(next(seeds))


def streamed(loaded: LanguageModel, seed: int) -> float:
    begun = time.perf_counter()
    pieces = list(loaded.stream(PROMPT, max_new_tokens=TOKENS, seed=seed))
    return (len(pieces) - 1) / (time.perf_counter() - begun)  # the last piece has no token


def asked(api: str, seed: int) -> float:
    settings = {"prompt": PROMPT, "max_tokens": TOKENS, "seed": seed, "stream": True}
    body = json.dumps({**settings, "stream_options": {"include_usage": True}}).encode()
    begun = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(f"{api}/completions", body)) as answer:
        *_, usage, _, _ = answer.read().decode().split("\n\n")  # then [DONE], and nothing
    return json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] / (time.perf_counter() - begun)


if __name__ == "__main__":
    with one_line_errors():
        main()
