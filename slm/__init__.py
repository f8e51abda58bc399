"""slm: an experiment framework for small language models."""

import os

# Threads of libgomp that wait for work spin by default, and on a machine that does anything else they then take the
# processor from the threads that they wait for. Read once, when torch is loaded; benchmarks/RESULTS.md has the numbers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
