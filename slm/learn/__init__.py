"""A language model from first principles, in six phases: files to read, or to write, and the checks of one's own code.

`python -m slm.learn` lists them; docs/learn.md walks through them.
"""
