"""Continuous batching over one base and many adapters. Knows no FastAPI and no pydantic."""
