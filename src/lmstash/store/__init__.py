"""BYTES: put, get, many at once, evict. Knows nothing of models."""
