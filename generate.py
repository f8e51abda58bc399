"""Tells stories: python generate.py ckpt=latest prompt="Once upon a time", all keys in conf/generate.yaml."""

from slm.cli import generate_main

if __name__ == "__main__":
    generate_main()
