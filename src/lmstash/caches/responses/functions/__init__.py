"""Calls of a cached function as requests: its code, its arguments, and all that these lead to."""
