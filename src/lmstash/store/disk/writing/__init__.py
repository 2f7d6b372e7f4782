"""Appending records to this process's segments, one by one or a sheet at a time."""
