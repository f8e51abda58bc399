"""The place of this process among those of one run, which torchrun, SLURM's srun or the first process has started.

`srun torchrun train.py` has the variables of both, and those of SLURM are then about the processes of torchrun itself.
"""

import os


def by_torchrun() -> bool:
    """As torch.distributed.is_torchelastic_launched, which Lightning asks before it looks for SLURM."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def by_srun() -> bool:
    """True for one of several processes of a step of SLURM; False in a batch script, which has ranks, too."""
    return not by_torchrun() and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1


def processes() -> int:
    """How many processes a launcher has started at once; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or (os.environ["SLURM_STEP_NUM_TASKS"] if by_srun() else 1))


def is_first() -> bool:
    """True in the process of rank 0. Processes that Lightning starts have no RANK, or that of the first one."""
    names = ("RANK",) if by_torchrun() else ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def local_rank() -> int:
    """The number of this process among those of this machine."""
    found = (os.environ.get(name, "") for name in ("LOCAL_RANK", "SLURM_LOCALID"))
    return next((int(rank) for rank in found if rank.isdecimal()), 0)
