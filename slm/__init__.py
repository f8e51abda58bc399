"""slm: an experiment framework for small language models."""
