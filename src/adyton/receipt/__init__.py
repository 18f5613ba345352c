"""Receipts: what a run of a program in a TEE made of what, in a form that is verified offline and for years. Pure."""
