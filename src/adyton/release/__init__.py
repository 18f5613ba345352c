"""The two protocols by which a protected start proves itself and is given keys."""
