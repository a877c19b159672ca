"""Rows to records: alpaca, ShareGPT, OpenAI, preference pairs, KTO labels and plain text."""
