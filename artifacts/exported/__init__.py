"""Models in exported forms: their record, and loaders that make each of them computable."""
