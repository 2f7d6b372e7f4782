"""THE FIVE caches, one room each."""
