"""Whether a model samples where a request does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmstash.caches.responses.requests.sampling import is_sampled

_DEFAULTS = ("gen_kwargs", "generation_kwargs", "default_gen_kwargs", "sampling_params", "generation_config")
_SINGLE = ("temperature", "do_sample")


def samples_by_default(lm: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether to take a request that says nothing of it as answered by chance.

    The harness's contract for `generate_until` is greedy decoding; a model's arguments, its own settings and the
    generation configuration of its torch module may say otherwise.
    """
    if is_sampled(arguments):
        return True
    told = {name: getattr(lm, name, None) for name in _SINGLE}
    if is_sampled({name: value for name, value in told.items() if isinstance(value, int | float | str)}):
        return True
    for name in _DEFAULTS:
        held = getattr(lm, name, None)
        if isinstance(held, Mapping) and is_sampled(held):
            return True
        if bool(getattr(held, "do_sample", False)):
            return True
    for name in ("model", "_model"):
        config = getattr(getattr(lm, name, None), "generation_config", None)
        if bool(getattr(config, "do_sample", False)):
            return True
    return False
