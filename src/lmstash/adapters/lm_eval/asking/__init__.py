"""Requests of the harness, and a backend's answers to them: in which parts, and which are kept when."""
