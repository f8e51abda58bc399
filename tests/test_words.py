"""Words that a reader with English as a second language would stumble over, each with the word to use instead."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = {  # pattern between non-letters -> replacement
    "lives": "attempts (of a run); is in, is kept in (of a thing)",
    "watchers?": "callbacks, observers",
    "doors?": "checks on untrusted files, entry points",
    r"rehears\w*": "verify_resume, trial run",
    "told": "given, known, generated",
    r"settles?|settled": "resolve_hardware, choose_microbatch, flush_checks",
    "steady": "robust",
    "at[ _]home": "defined in; in the home folder",
    "nobody's": "not used by any",
    "is no news": "is ignored, is known already",
    "whoever": "the caller, the user",
    "done without": "left out, disabled",
    "do without": "leave out; need",
    "(?<!half )of it is": "name the part",
    "zero_writers": "zero_init_residual",
    "trusted_targets": "nothing: any importable class may be named",
    "warmup_share": "warmup_fraction",
    "decay_share": "decay_fraction",
    "may[ _]be[ _]late": "is_deferred, runs one step later",
    "friendly": "SIGTERM, a request to stop",
    "bursts?": "compressed entries are refused",
    r"rewind\w*": "nothing: on_spike is warn or skip",
    "cards?": "run.json, run_info; GPU",
    "strangers?": "another person",
    "on the spot": "on request",
    "by heart": "memorize, overfit",
    "as (it|they) ever": "unchanged",
    "sorted out": "classified",
    "taken up again": "resumed",
    "its own business": "left to it",
    "out of the way": "moved, avoided",
    "in one piece": "complete",
    "goes? (bad|wrong)": "fails",
}
ALLOWED = {
    ("slm/files/run_folder.py", "lives"),  # the key of run.json in an older version
    ("slm/run/names.py", "warmup_share"),  # a key that is answered with its new name
}
PLACES = (
    "slm/**/*.py",
    "conf/**/*.yaml",
    "docs/*.md",
    "README.md",
    "benchmarks/*.py",
    "deploy/*",
    "tests/**/*.py",
    "*.py",
)


def test_plain_words():
    found, needed, any_word = [], set(), re.compile("|".join(WORDS), re.IGNORECASE)
    for path in sorted({path for place in PLACES for path in ROOT.glob(place)} - {Path(__file__)}):
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for pattern, replacement in WORDS.items() if any_word.search(line) else ():
                match = re.search(rf"(?<![a-z])({pattern})(?![a-z])", line, re.IGNORECASE)
                if match and (name, pattern) in ALLOWED:
                    needed.add((name, pattern))
                elif match:
                    found.append(f"{name}:{number}: instead of {match[0]!r}: {replacement}")
    assert not found, "\n" + "\n".join(found)
    assert needed == ALLOWED
