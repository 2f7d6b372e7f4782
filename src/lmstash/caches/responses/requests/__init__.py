"""Requests as bytes: what of them counts, what is hidden, what is asked by chance."""
