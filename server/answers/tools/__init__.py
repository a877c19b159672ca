"""Calls of functions: how bases write them, how answers are made to hold them and are read."""
