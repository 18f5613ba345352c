"""Attacks on the dashboard by whoever can reach its address."""
