"""Agreements: a short text that several owners sign, as the ground on which each releases her keys to one program."""
