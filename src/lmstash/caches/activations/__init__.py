"""A model's hidden values: computed once for each prompt, site and layer. Needs torch."""

from __future__ import annotations

try:
    import torch  # noqa: F401 - everything here needs it
except ImportError:
    from lmstash.errors import MissingDependencyError

    raise MissingDependencyError("torch", "torch") from None

from lmstash.caches.activations.cache import Activations
from lmstash.caches.activations.extractor import ExtractionError, Extractor
from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import Prompt
from lmstash.caches.places import SITES

__all__ = ["SITES", "Activations", "ExtractionError", "Extractor", "Pool", "Prompt"]
