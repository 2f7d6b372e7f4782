"""Torch models: their fingerprints, and noticing that one is no longer what it was."""
