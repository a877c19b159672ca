"""What is wrong with the data: cleaning, personal data, near duplicates, totals. No torch."""
