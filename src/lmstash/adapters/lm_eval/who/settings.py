"""What counts of an `LM`'s attributes: all that are not known to be harmless, or to follow from what counts already."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from lmstash.adapters.lm_eval.who.code_of import described, own_code
from lmstash.adapters.lm_eval.who.named_files import files_named
from lmstash.adapters.lm_eval.who.own_names import Followed, harmless, variables
from lmstash.caches.responses.requests.hiding import SECRETS
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.encoding import Component

_PLACES = frozenset(
    {
        *("_rank", "_world_size", "_device", "device", "accelerator", "cache_hook", "batch_size", "_batch_size"),
        *("batch_sizes", "batch_schedule", "batch_size_per_gpu", "max_batch_size", "num_concurrent", "_concurrent"),
    }
)
"""Where an evaluation is run and how many requests at once, whatever code goes by it."""
RUNNING = frozenset(
    {"max_retries", "timeout", "verify_certificate", "ca_cert_path", "auth_token", "api_key", "write_out"}
)
"""How patiently it is run, not what is answered."""
IN_WEIGHTS = frozenset(
    {"_config", "pretrained", "delta", "peft", "revision", "logits_cache", "AUTO_MODEL_CLASS", "_max_length"}
)
"""Of an `HFLM`: what its module says better, by content."""
DERIVED = frozenset({"eot_token_id", "eos_string", "prefix_token_id", "header", "client"})
"""Of a `TemplateAPI`: what follows from other attributes."""
_ALWAYS = frozenset({"delta", "header"})
"""Words that others use for something else: what goes by these names counts."""


def left_out_of(lm: Any, names: frozenset[str], code: Followed) -> frozenset[str]:
    """Return which attributes change no answer, or say nothing new.

    Places, counters, and those of `names` that no code of somebody's own goes by, or that the harness has made of
    others.
    """
    held = attributes_of(lm)
    named = (code.asked(held) | _ALWAYS) & names
    follow = {name for name in named if _follows(lm, name)}
    replaced = {name for name in DERIVED & names & held.keys() if _is_made(lm, name) and not _follows(lm, name)}
    return (_PLACES | follow | harmless(names, named, held) | code.counters(lm)) - replaced


def settings_and_code(
    lm: Any,
    names: frozenset[str],
    code: Followed,
    without: Collection[str] = (),
    *,
    held: Mapping[str, Any],
    vouched: bool,
) -> dict[str, Component]:
    """Return what counts of an `LM`'s attributes, its code, and what this reads: of the environment, and named files.

    Args:
        lm: The harness's model.
        names: Of attributes that change no answer unless somebody's own code goes by them.
        code: What was read of its code so far.
        without: Names that do not count.
        held: Its attributes, as they count.
        vouched: Whether somebody vouches for what cannot be read.

    Raises:
        UnsupportedModelError: Something cannot be read.
    """
    settings: dict[Any, Component] = {}
    units: Component = {}
    left = True
    while left:  # code that is met may go by further attributes, and these may lead to more code
        left_out = left_out_of(lm, names, code) | settings.keys() | {*without}
        found: Any = described(held, left_out, code, vouched=vouched, named=code.asked(held))
        units = own_code(code, vouched=vouched)
        left = bool(found)
        settings |= found
    read = variables([code], settings)
    files = files_named(held, left_out_of(lm, names, code) | {*without}, code)
    more: dict[str, Component] = {"variables": read, "files": files}
    return {"settings": settings, "code": units, **{name: each for name, each in more.items() if each}}


def _follows(lm: Any, name: str) -> bool:
    """Whether an attribute is what a property of the harness makes of others, or the module that is read."""
    held = attributes_of(lm).get(name)
    made = _property_of(lm, name)
    if made is None or not _is_made(lm, name):
        return held is not None and held is getattr(lm, "_model", None)
    try:
        if held is None and name == "eos_string" and lm.tokenizer is None:
            return not lm._eos_string  # the property would log a warning each time
        return bool(made.func(lm) == held)
    except Exception:  # without a key, say
        return False


def _is_made(lm: Any, name: str) -> bool:
    """Whether a property of the harness's own makes an attribute, once for all."""
    made = _property_of(lm, name)
    return made is not None and str(made.func.__module__).partition(".")[0] == "lm_eval"


def _property_of(lm: Any, name: str) -> cached_property[Any] | None:
    found = inspect.getattr_static(type(lm), name, None)
    return found if isinstance(found, cached_property) else None


def is_headers(lm: Any, name: str) -> bool:
    """Whether an attribute is nothing but what `header_of` reads."""
    held = attributes_of(lm).get(name)
    return isinstance(held, Mapping) or (held is None and name == "_header")


def header_of(lm: Any, *, ask: bool = True) -> Component:
    """Return digests of what an API is told beside each request, by name: also where somebody else says it.

    Args:
        lm: The harness's model.
        ask: Whether to ask a property of somebody's own what it is, once for all.
    """
    made = _property_of(lm, "header")
    if ask and made is not None and str(made.func.__module__).partition(".")[0] != "lm_eval":
        with contextlib.suppress(Exception):  # without a key, say
            lm.header  # noqa: B018 (what its own property makes of it, once for all)
    given = attributes_of(lm).get("_header")
    said = dict(given) if isinstance(given, Mapping) else {}
    held = attributes_of(lm).get("header")
    if isinstance(held, Mapping) and not _follows(lm, "header"):
        said |= held
    return {
        str(name).lower(): hashlib.sha256(str(value).encode()).hexdigest()
        for name, value in said.items()
        if not SECRETS.fullmatch(str(name))
    }


def how_sent(lm: Any) -> dict[str, Component]:
    """Return what decides how an API is asked: beside other requests the harness sends no stop word of the model's own.

    How many others there are does not count.
    """
    n_concurrent = getattr(lm, "_concurrent", 1)
    return {"concurrent": True} if isinstance(n_concurrent, int) and n_concurrent > 1 else {}
