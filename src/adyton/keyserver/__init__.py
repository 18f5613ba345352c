"""Decides who gets a key: the decision, its reasons, and its record. Nothing here opens a socket."""
