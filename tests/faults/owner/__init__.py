"""What a hostile co-owner tries with the files that she hands over, and what becomes of it."""
