"""Weights of 4 bits chosen by what the model computes with them, on texts of its own."""
