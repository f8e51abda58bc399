"""Generates text: python generate.py ckpt=latest prompt="Once upon a time", all keys in conf/generate.yaml."""

from slm.run.start import generate

if __name__ == "__main__":
    generate()
