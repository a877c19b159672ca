"""Groups of configuration keys; ``training.config.TrainingConfig`` is all of them. No torch."""
