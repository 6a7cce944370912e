"""Training: trainer, distribution, checkpoints, EMA, loggers, diagnostics."""
