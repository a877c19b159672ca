"""Data to adapter version: rendering, fine-tuning, evaluation and gates. Knows no server."""
