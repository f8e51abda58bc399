"""Trains a GPT: python train.py [group=option ...] [key=value ...], all of them in conf/train.yaml."""

from slm.run.start import train

if __name__ == "__main__":
    train()
