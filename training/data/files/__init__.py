"""Files to rows that know their line: JSON, JSON Lines, CSV, Parquet and text. No form of a row."""
