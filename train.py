"""Trains a GPT: python train.py [group=option ...] [key=value ...], all of them in conf/train.yaml."""

import os
import signal

# until training is under way and can save, what asks the program to stop simply ends it
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
if "SLURM_JOB_ID" in os.environ:  # but SLURM's "time is nearly up" waits until there is something to save
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

from slm.files.stdio import make_stdio_robust  # noqa: E402

if __name__ == "__main__":
    make_stdio_robust()
    from slm.run.cli import train_main

    train_main()
