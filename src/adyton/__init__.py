"""Adyton runs an unmodified PyTorch program on a machine that its owner does not trust."""

__version__ = "0.1.0"
