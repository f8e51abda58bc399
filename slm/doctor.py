"""What this machine lacks for a training, and what to do about it: python -m slm.doctor [--json] [--wait SECONDS].

Each check has a line: ok, warning (some option does not work) or error (training does not). Nothing is changed, no key
is printed. A check that does not answer in time, such as one of a network drive, is a warning.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from threading import Thread

from slm.checks import machine, packages, services, storage
from slm.checks.finding import Finding
from slm.errors import one_line, printable
from slm.files import json_line
from slm.files.stdio import make_stdio_robust

Check = Callable[[], Finding | list[Finding]]
SECONDS = 5.5  # for all checks, which run at the same time
SPARE = 0.25  # of it, to end an import and to ask the driver


def checks_of(seconds: float) -> dict[str, Check]:
    """Name -> check; imports may take so long."""
    with_torch = {"device": partial(machine.device, seconds)} if packages.version("torch") else {}
    return {
        "Python": packages.python,
        "packages": packages.packages,
        "extras": packages.extras,
        **with_torch,
        "memory": machine.memory,
        "compiler": machine.compiler,
        "disk": storage.disk,
        "cached": storage.cache,
        "Hub": services.hub,
        "W&B": services.wandb,
        "git": services.git,
    }


def examine(checks: dict[str, Check], seconds: float) -> list[Finding]:
    """The findings of the checks, which run at the same time, in their order; a warning for one that takes longer."""
    found: dict[str, list[Finding]] = {}

    def run(name: str, check: Check):
        try:
            answer = check()
        except ModuleNotFoundError as error:
            answer = Finding(name, "warning", f"not known without {error.name}", "see packages, above")
        except Exception as error:  # of a broken installation: any other check still has an answer
            answer = Finding(name, "error", f"the check failed: {type(error).__name__}: {error}", "report it")
        found[name] = answer if isinstance(answer, list) else [answer]

    begin = time.monotonic()
    threads = {name: Thread(target=run, args=(name, check), daemon=True) for name, check in checks.items()}
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(begin + seconds - time.monotonic(), 0))
    late = f"no answer after {seconds:.0f} s"
    return [
        finding
        for name in checks
        for finding in found.get(name) or [Finding(name, "warning", late, "a network drive, or a busy machine?")]
    ]


def shown(findings: Sequence[Finding]) -> str:
    """A line for each finding, and one for what to do about it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:8} {finding.check:16} {one_line(finding.found, 400)}")
        lines += [f"{'':25} -> {one_line(finding.remedy, 300)}"] if finding.remedy else []
    counts = {status: sum(finding.status == status for finding in findings) for status in ("error", "warning")}
    lines.append(", ".join(f"{count} {status}{'s' * (count != 1)}" for status, count in counts.items()))
    return printable("\n".join(lines))


@json_line.command
def main() -> int:
    """Exit code: 2 if there is an error, else 0."""
    parser = json_line.Parser(prog="python -m slm.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a list of objects: check, status, found, remedy")
    parser.add_argument("--wait", type=float, default=SECONDS, metavar="SECONDS", help="for all checks; default 5.5")
    arguments = parser.parse_args()
    findings = examine(checks_of(max(arguments.wait - SPARE, 1)), arguments.wait)
    found = [asdict(finding) for finding in findings]
    json_line.note(findings=found)
    print(json.dumps(found, indent=1) if arguments.json else shown(findings))
    return 2 if any(finding.status == "error" for finding in findings) else 0


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
