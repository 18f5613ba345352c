"""The two protocols by which a protected program proves itself and gets its keys."""
