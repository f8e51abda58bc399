"""What a run will take before it runs: memory, time and cost, and what looks wrong in its configuration."""
