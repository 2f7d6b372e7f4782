"""LONGEST PREFIX: a radix index in RAM over token sequences, and how far a store keeps a prompt's blocks."""
