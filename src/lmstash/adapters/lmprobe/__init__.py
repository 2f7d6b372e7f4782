"""Keeps activations where lmprobe users expect them: lmprobe's cache names over an lmstash store."""
