"""Makes one file of a sharded checkpoint.

python -m slm.checkpoint gather RUN [out=FILE] [runs_dir=runs]

RUN is a run folder (its best checkpoint, else its newest), a checkpoint, latest, last or best. Without out= the file
lies beside the checkpoint: step-000100-whole.ckpt. It is new: it is complete or absent.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from slm import checkpoint
from slm.errors import UserError, printable
from slm.files import atomic, json_line, run_folder
from slm.files.stdio import make_stdio_robust
from slm.run.words import divided, values_of


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings of the command."""

    out: str | None = None
    runs_dir: str = "runs"


@json_line.command
def main() -> int:
    """Exit code: 0, or 2 or 4 for a mistake or a limit of the machine."""
    words = sys.argv[1:]
    if json_line.shows_help(words or ["--help"], __doc__):
        return 0
    places, settings = divided(words)
    if len(places) != 2 or places[0] != "gather":
        raise UserError(f"python -m slm.checkpoint takes gather RUN and key=value, not {' '.join(words)}")
    request = Request(**values_of(settings, Request)[0])
    path = run_folder.find_checkpoint(places[1], atomic.expanded(request.runs_dir), key="RUN")
    gather(path, atomic.expanded(request.out) if request.out else path.with_name(f"{path.stem}-whole.ckpt"))
    return 0


def gather(path: Path, target: Path):
    """Raises UserError for a checkpoint that is a file, and for a target that exists or has no folder."""
    if not run_folder.is_sharded(path):
        raise UserError(f"{path} is not sharded, so there is nothing to gather")
    if target.exists() or not target.parent.is_dir():
        raise UserError(f"out={target} {'exists' if target.exists() else 'is in no folder'}; give a new file")
    content = checkpoint.read(path)
    checkpoint.save(content, target)
    facts = {"file": str(target), "step": content["global_step"], "bytes": target.stat().st_size}
    print(printable(f"{target}: step {facts['step']:,} in one file of {facts['bytes']:,} bytes"))
    json_line.note(**facts)


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
