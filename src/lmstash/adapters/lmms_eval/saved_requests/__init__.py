"""Requests that the harness builds once and saves: packed without pickling, and what they hang on."""
