"""What a run learns from its rows: the batches, the loss and its mean on held-out rows."""
