"""A module per phase with a function `checks(own)`: it yields a sentence for each check that the module `own` passes,
with the number measured, and raises Wrong at the first that it does not pass."""
