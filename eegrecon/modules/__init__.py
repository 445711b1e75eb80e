"""LightningModules: wiring between networks, losses and the trainer, and nothing else."""
