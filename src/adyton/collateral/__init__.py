"""Collateral: the documents that evidence is verified with, and how they are fetched and kept.

These are certificates, revocation lists and TCB documents from the vendors.
"""
