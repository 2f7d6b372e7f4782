"""Memory: the bytes of tensors, and whether anything was written to them, or into a dict, since they were read."""
