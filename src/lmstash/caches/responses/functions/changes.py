"""What a call changed, while it computed, of what it goes by: a hit would not do that again.

A conversation that grows by each answer, a list that is handed in and added to: served from a cache, the answer would
be right, and the program would go on with another state than without. So an answer that came with such a change is not
kept. What is only made at first use is no such change: a client where there was None, a `cached_property`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from types import CodeType
from typing import Any

from lmstash.caches.responses.functions.content import Content
from lmstash.caches.responses.functions.looks import Look, is_name
from lmstash.caches.responses.functions.own_objects import differing, parts_told
from lmstash.identity.code.named_texts import may_be_path
from lmstash.identity.content.held_files import content_of
from lmstash.identity.dataflow.stores import changed_in_place, stores_in


def files_named(before: Look) -> dict[str, Any]:
    """Return what the files hold now that arguments, and fields of objects, name by text."""
    return {each: content_of(each) for each in before.words if may_be_path(each)}


def changed(
    content: Content,
    before: Look,
    named: Mapping[str, Any],
    arguments: Mapping[str, Any],
    files: Mapping[str, Any],
    of: str = "",
) -> dict[str, bool]:
    """Return the names of what a call leads to that is no more as it was, and whether it was only made at first use.

    Costs about what naming the call costs.

    Args:
        content: Reads it.
        before: As it was.
        named: The arguments.
        arguments: What stood for these. Arrays and media are not looked at again.
        files: What `files_named` said before.
        of: The argument that is the object whose method is called.
    """
    look = content.again(before)
    codes = [code for each in before.used.values() for code in each.graph.codes]
    found = dict.fromkeys(_files_changed(before.files, before.files_now(content.harmless)), False)
    found |= dict.fromkeys(differing(files, files_named(before)), False)
    for at in differing(before.held, look.held):
        name = (before.used.get(at[0]) or look.used[at[0]]).name_of(at[1])
        was, is_ = (parts_told(name, each.held.get(at)) for each in (before, look))
        found |= _parts_changed(name, was, is_, codes)
    for name, was in arguments.items():
        if isinstance(was, dict | list | tuple) and (is_ := content.argument(name, named[name])) != was:
            of_it = name == of  # of others, what is filled in is what the call is for
            found |= _parts_changed(name, parts_told(name, was), parts_told(name, is_), codes, may_be_guarded=of_it)
    for said, each in list(before.used.items())[: before.n_first]:
        if not each.graph.unchanged():
            now, held = content.read_anew(each)
            places = {at for at in differing(each.units, now.units) if ":" in at}
            places |= {at for at, is_ in held.items() if is_ != before.held.get((said, at))}
            names = {each.name_of(at): at not in held for at in places if is_name(each.name_of(at))}
            found |= {name: was_plain and _is_made(name, codes) for name, was_plain in names.items()}
    return found


def _files_changed(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the files that hold something else now, those of a folder each by itself."""
    for text in differing(before, now):
        was, is_ = ([*map(_within, each.get(text, ()))] for each in (before, now))
        within = {name for one, other in zip_longest(was, is_, fillvalue={}) for name in differing(one, other)}
        folder = os.path.dirname(text) if "*" in text else text
        yield from (os.path.join(folder, each) for each in within)
        if not within:
            yield str(text)


def _within(held: Any) -> dict[str, Any]:
    """Return what a place holds by the names of its files; nothing for what is one file, or cannot be told apart."""
    inner = held[1] if isinstance(held, list) and held[:1] == ["folder"] else held
    return inner if isinstance(inner, dict) else {}


def _parts_changed(
    name: str,
    was: Mapping[str, Any],
    is_: Mapping[str, Any],
    codes: Collection[CodeType],
    *,
    may_be_guarded: bool = True,
) -> dict[str, bool]:
    """Return the parts of a value that are others now; the value itself where that cannot be told."""
    places = set(filter(is_name, differing(was, is_))) or {name}
    made = {
        each
        for each in places
        if was.get(each) in (None, [None]) and "." in each and _is_made(each, codes, may_be_guarded)
    }
    within = {each for each in places for one in places if each.startswith(f"{one}.")}
    return {each: each in made for each in places - within}


def _is_made(place: str, codes: Collection[CodeType], may_be_guarded: bool = True) -> bool:
    """Whether code makes what goes by a name where there is none, of nothing that it is asked, and leaves it so."""
    name = place.rpartition(".")[2]
    stores = [stores_in(each, guarded=True) for each in codes]
    if any(name in each.by_question for each in stores):
        return False
    if any(name in chain for each in codes for chain in changed_in_place(each)):
        return False
    guarded = may_be_guarded and any(name in each.made for each in stores)
    return guarded or any(each.co_name == name for each in codes)  # a `cached_property`
