"""Tells stories: python generate.py ckpt=latest prompt="Once upon a time", all keys in conf/generate.yaml."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until training or a story is under way, Ctrl-C simply ends the program

from slm.run.cli import generate_main  # noqa: E402

if __name__ == "__main__":
    generate_main()
