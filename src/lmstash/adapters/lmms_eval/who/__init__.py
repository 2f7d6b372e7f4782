"""Which model answers: what a model object of the harness is made of, and what it changes about itself."""
