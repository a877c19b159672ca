"""Calls of functions: how bases write them, how an answer is made to hold them, how they are read."""
