"""A language model from first principles, in six phases.

python -m slm.learn                         lists the phases
python -m slm.learn start FOLDER            writes six files, in which the interesting bodies are yours to write
python -m slm.learn check FOLDER [PHASE]    checks your code, of one phase (1 to 6) or of all
python -m slm.learn check [PHASE]           runs the same checks on the reference

The exit code is 0 if all checks pass, 1 if one does not, 2 for a mistake in the command.
"""

import sys
import time
from pathlib import Path

from slm.errors import UserError
from slm.files import atomic, json_line
from slm.files.stdio import make_stdio_robust
from slm.learn.exercises import PHASES, Phase, start


@json_line.command
def main() -> int:
    words = sys.argv[1:]
    if json_line.shows_help(words, __doc__.strip()):
        return 0
    if not words:
        print(syllabus())
    elif words[0] == "start" and len(words) == 2:
        for path in start(atomic.expanded(words[1])):
            print(f"written: {path}")
        print(f"Begin with phase 1, and check it with: python -m slm.learn check {words[1]} 1")
    elif words[0] == "check" and len(words) <= 3:
        return check(words[1:])
    else:
        raise UserError(f"{' '.join(words)}: give start FOLDER, check FOLDER PHASE, or nothing for the list of phases")
    return 0


def syllabus() -> str:
    """The phases, each with the command of its checkpoint."""
    lines = ["Six phases; each ends with a checkpoint. First: python -m slm.learn start FOLDER", ""]
    for phase in PHASES:
        lines += [f"{phase.number}  {phase.title}", f"   python -m slm.learn check FOLDER {phase.number}"]
    return "\n".join([*lines, "", "Without FOLDER, a checkpoint checks the reference: the files in slm/learn/phases/."])


def check(words: list[str]) -> int:
    """Checks the phases that `words` name, [FOLDER] [PHASE], and returns the exit code."""
    phases = PHASES
    if words and words[-1].isdecimal() and (len(words) == 2 or not Path(words[0]).is_dir()):
        phases = [phase for phase in PHASES if str(phase.number) == words[-1]]
        if not phases:
            raise UserError(f"phase {words[-1]} must be from 1 to {len(PHASES)}")
        words = words[:-1]
    if len(words) > 1:
        raise UserError(f"phase {words[-1]} must be a number from 1 to {len(PHASES)}")
    folder = atomic.expanded(words[0]) if words else None
    if folder and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; python -m slm.learn start {folder} writes it")
    passed = [check_phase(phase, folder) for phase in phases]
    return 0 if all(passed) else 1


def check_phase(phase: Phase, folder: Path | None) -> bool:
    """Prints the verdict on each check of a phase, up to the first that is not passed."""
    from slm.learn.trial import Failed, trial

    print(f"phase {phase.number}: {phase.title}", flush=True)
    begin, count = time.perf_counter(), 0
    try:
        for line in trial(phase, folder):
            print(f"  pass  {line}", flush=True)
            count += 1
    except Failed as failed:
        first, *others = str(failed).splitlines()
        print(f"  FAIL  {first}", *others, sep="\n        ")
        print(f"phase {phase.number} is not passed yet; checks passed before: {count}\n", flush=True)
        return False
    print(f"passed: {count} checks in {time.perf_counter() - begin:.1f} s\n", flush=True)
    return True


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
