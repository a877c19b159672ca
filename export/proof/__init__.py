"""Whether an export answers as the adapter does. Knows nothing of how it was made."""
