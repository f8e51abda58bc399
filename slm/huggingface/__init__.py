"""Models in the folders of Hugging Face's transformers, in both directions, without that package.

layouts.py has the architectures and their settings, tensors.py the names and shapes of their weights, folder.py the
way from a folder to a model of slm. The way out is slm/export.
"""
