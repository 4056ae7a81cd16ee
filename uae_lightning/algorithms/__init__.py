"""The mathematics of the three stages: pure functions on tensors, importing torch and nothing else."""
