"""Measurements, each a ratio against a peer in one run on one machine, with the physical limit beside it."""
