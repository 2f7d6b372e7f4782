"""The index: an SQLite database that says where each key is."""
