"""Next-token log-probabilities: what a language model says comes next, computed once for each context."""
