"""What every training run keeps: checkpoints and a record."""
