"""Keeps what a language model has computed, so that nobody computes it twice."""

__version__ = "0.1.0"
