"""The harness's response cache: what a model is really asked, and its answers as they come."""
