"""slm.train: a training from Python, with the overrides of the command line."""

import os
from collections.abc import Sequence

from slm.errors import Stopped, UserError
from slm.results import Run
from slm.run import cli
from slm.run.overrides import check_no_sweep


def train(overrides: str | Sequence[str] = ()) -> Run:
    """Trains like `python train.py` with these overrides, and returns the run.

    A run stopped by Ctrl-C or SIGTERM has the status "stopped"; the same run_dir resumes it. Raises UserError,
    ResourceError or Diverged.
    """
    overrides = cli.expanded([overrides] if isinstance(overrides, str) else overrides)
    check_no_sweep(overrides)
    config = cli.compose(overrides)
    try:
        folder = cli.choose_folder(config)
        if cli.run(config, folder, overrides)[1]:
            raise UserError("verify_resume: the resumed run differs, see above")
    except Stopped:
        pass
    finally:
        os.environ.pop("SLM_RUN_DIR", None)
    return Run(folder)
