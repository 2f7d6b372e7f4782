"""Which model answers: what an `LM` of the harness is made of, as far as its answers hang on that."""
