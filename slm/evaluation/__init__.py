"""Measures of a trained model, and standard tests."""
