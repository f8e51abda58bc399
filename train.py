"""Trains a GPT: python train.py [group=option ...] [key=value ...], all of them in conf/train.yaml."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until training or a story is under way, Ctrl-C simply ends the program

from slm.cli import train_main  # noqa: E402

if __name__ == "__main__":
    train_main()
