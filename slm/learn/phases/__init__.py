"""The reference of the six phases; `python -m slm.learn start` leaves out what follows `# your code`."""
