"""Exports in the programs they are meant for; docs/export.md says how each is run."""
