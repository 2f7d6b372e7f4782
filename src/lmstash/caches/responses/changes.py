"""What a call changed, while it computed, of what it goes by: a hit would not do that again.

A conversation that grows by each answer, a list that is handed in and added to: served from a cache, the answer would
be right, and the program would go on with another state than without. So an answer that came with such a change is not
kept. What is only made at first use is no such change: a client where there was None, a `cached_property`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from lmstash.caches.responses.content import Content
from lmstash.caches.responses.looks import Code, Look, is_name
from lmstash.caches.responses.own_objects import differing, parts_told

_OBJECT = "lmstash:is"
"""By which `content` marks what stands for an object."""


def changed(content: Content, before: Look, named: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, bool]:
    """Return the names of what a call leads to that is no more as it was, and whether it was only made at first use.

    Costs about what naming the call costs.

    Args:
        content: Reads it.
        before: As it was.
        named: The arguments.
        arguments: What stood for these. Arrays and media are not looked at again.
    """
    look = content.again(before)
    found = {str(text): False for text in differing(before.files, content.files_now(before))}
    for at in differing(before.held, look.held):
        name = (before.used.get(at[0]) or look.used[at[0]]).name_of(at[1])
        was, is_ = (parts_told(name, each.held.get(at)) for each in (before, look))
        found |= _parts_changed(name, was, is_, before.used.values())
    for name, was in arguments.items():
        if isinstance(was, dict | list | tuple) and (is_ := content.argument(name, named[name])) != was:
            found |= _parts_changed(name, parts_told(name, was), parts_told(name, is_), before.used.values())
    for said, each in list(before.used.items())[: before.n_first]:
        if not each.graph.unchanged():
            now, held = content.read_anew(each)
            places = {at: at in now.objects for at in differing(each.units, now.units) if ":" in at}
            places |= {at: False for at, is_ in held.items() if is_ != before.held.get((said, at))}
            found |= {each.name_of(at): made for at, made in places.items() if is_name(each.name_of(at))}
    return found


def _parts_changed(name: str, was: Mapping[str, Any], is_: Mapping[str, Any], used: Iterable[Code]) -> dict[str, bool]:
    """Return the parts of a value that are others now; the value itself where that cannot be told."""
    places = set(filter(is_name, differing(was, is_))) or {name}
    made = {each for each in places if was.get(each) in (None, [None]) and _is_made(each, was, is_.get(each, []), used)}
    within = {each for each in places for one in made if each.startswith(f"{one}.")}
    return {each: each in made for each in places - within}


def _is_made(place: str, was: Mapping[str, Any], told: list[Any], used: Iterable[Code]) -> bool:
    """Whether what came to be somewhere is an object, or what a `cached_property` gave."""
    if told[:1] == [_OBJECT] or (len(told) == 2 and all(isinstance(each, str) for each in told) and "." in told[0]):
        return True
    bases = [base for each in used if isinstance(each.code, type) for base in each.code.__mro__]
    name = place.rpartition(".")[2]
    return place not in was and any(isinstance(vars(base).get(name), functools.cached_property) for base in bases)
