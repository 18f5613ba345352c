"""The measured guest image: its document, and everything that is made or checked from it."""
