"""Locks in a forked child: one that a thread of the parent held would never be released there, so each is made anew."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_owners: list[tuple[weakref.ref[Any], dict[str, Callable[[], Any]]]] = []


def renew_after_fork(owner: object, **locks: Callable[[], Any]) -> None:
    """Have a forked child replace attributes of `owner`: names, and what makes each of them."""
    _owners[:] = [each for each in _owners if each[0]() is not None]
    _owners.append((weakref.ref(owner), locks))


def _renew() -> None:
    for reference, locks in _owners:
        owner = reference()
        if owner is not None:
            for name, make in locks.items():
                setattr(owner, name, make())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
