"""Failures of the machine, and of what a checkpoint holds, during a training: one line each."""

import re
import traceback
from pathlib import Path

from slm import errors
from slm.errors import ResourceError, UserError
from slm.planning.microbatch import smaller_microbatch
from slm.run.prepare import Job

SHARED_MEMORY = re.compile(r"bus error|shared memory|/dev/shm|</?torch_\d+", re.IGNORECASE)


def explain(error: Exception, job: Job, start: Path | None, loaders: int) -> UserError | None:
    """A failure during training as one line; None for a bug. `start`: the checkpoint, `loaders`: processes."""
    if start and (explanation := explain_restoring(error, start)):
        return explanation
    if loaders and (explanation := explain_loader(error, job)):
        return explanation
    text = str(error)
    if errors.is_out_of_memory(error):
        return out_of_memory(job)
    if isinstance(error, FileNotFoundError) and not job.run_dir.is_dir():
        return ResourceError(f"the run folder {job.run_dir} was removed or moved away during training")
    if type(error).__name__ == "MisconfigurationException":
        return UserError(f"Lightning refuses the training: {text}")
    if isinstance(error, ModuleNotFoundError) and "slm" not in text:  # a callback or logger of Lightning
        return UserError(f"a package is missing: {text}")
    return errors.explain(error)


def explain_loader(error: Exception, job: Job) -> UserError | None:
    """An error that a loader process raised or that its end caused; None for any other error."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError) and "Original Traceback" in text:
        return type(error)(str(error).strip().splitlines()[-1].partition(": ")[2])
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return ResourceError(
            f"a loader process took more than data.timeout={job.config.data.timeout} seconds; check the disk"
        )
    if isinstance(error, RuntimeError | OSError) and SHARED_MEMORY.search(text):
        return ResourceError(
            f"the shared memory of the loader processes is full ({text[:200]}); give data.workers=0, or more of it "
            "(docker run --shm-size=1g)"
        )
    killed = isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")
    if killed or isinstance(error, ConnectionResetError | EOFError):  # a pipe to it has closed
        return ResourceError(f"a loader process was killed ({text}); out of memory? try data.workers=0")
    if "in DataLoader worker process" in text and errors.is_out_of_memory(error):
        return ResourceError("a loader process ran out of memory; give data.workers=0, or fewer of them")
    return None


def out_of_memory(job: Job) -> ResourceError:
    config, microbatch = job.config, job.microbatch
    less = smaller_microbatch(microbatch, config.data.batch_windows, job.hardware)
    remedies = ["model.gradient_checkpointing=true"]
    if microbatch > 1 and not config.trainer.auto_microbatch:
        remedies.insert(0, "trainer.auto_microbatch=true")
    if less < microbatch:
        remedies.insert(0, f"trainer.microbatch={less}")
    return ResourceError(
        f"out of memory with {microbatch} windows per forward pass; the same training needs less with "
        f"{' or '.join(remedies)}; +recipe=low_memory has the smaller passes, checkpointing and bfloat16"
    )


def explain_restoring(error: Exception, start: Path) -> UserError | None:
    """An error of Lightning, torch or slm while they restore a checkpoint, as one line; None for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    restoring = any(frame.filename.endswith("checkpoint_connector.py") and "restore" in frame.name for frame in frames)
    ours = any(part in frames[-1].filename for part in ("site-packages", str(Path(__file__).parents[1])))
    if not (restoring and ours) or errors.explain(error):
        return None
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UserError(f"the state of training in {start} does not fit this configuration ({text}); nothing was changed")
