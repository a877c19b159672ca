"""Files to token ids: reading, formats, rendering, split. No torch in here."""
