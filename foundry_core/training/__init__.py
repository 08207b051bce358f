"""Training: the run, the trainer, its plan, optimizers and schedules, observers and signals."""
