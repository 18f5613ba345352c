"""Pinned folders: every file and folder of an encrypted folder held to one root, so that nothing old comes back."""
