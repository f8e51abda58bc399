"""Measures of a trained model, and standard tests. slm/evaluate.py is the command."""
