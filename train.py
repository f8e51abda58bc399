"""Trains a GPT: python train.py [group=option ...] [key=value ...], all of them in conf/train.yaml."""

from slm.cli import train_main

if __name__ == "__main__":
    train_main()
