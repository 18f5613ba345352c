"""What a hostile client of the owner's servers tries, and what becomes of it."""
