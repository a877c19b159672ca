"""Adapters in forms that other programs run. Imports artifacts only."""
