"""Runs as SLURM jobs: cluster facts, the batch script, and what runs on the nodes."""
