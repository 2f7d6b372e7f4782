"""When each entry was last used, and what room there is."""
