"""Kept answers: their records, their shelf, and looking through them."""
