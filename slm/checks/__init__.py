"""What a machine has, one check per function, for python -m slm.doctor. Without torch but in a process of its own."""
