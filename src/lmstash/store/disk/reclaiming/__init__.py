"""Getting room back: eviction and reclaim, which are one act."""
