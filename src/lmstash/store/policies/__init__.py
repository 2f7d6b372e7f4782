"""What goes first when room is needed. Pure: numbers in, numbers out, no I/O and no locks."""

from __future__ import annotations

from lmstash.errors import InvalidArgumentError
from lmstash.store.policies.base import Policy
from lmstash.store.policies.lru import LeastRecentlyUsed

_LATER = ("arc", "gdsf")


def policy_named(name: str) -> Policy:
    """Return the policy called `name`.

    Raises:
        InvalidArgumentError: There is none, or it comes with a later release.
    """
    if name == LeastRecentlyUsed.name:
        return LeastRecentlyUsed()
    if name in _LATER:
        raise InvalidArgumentError(f"policy={name!r} comes with a later release of lmstash. Use policy='lru'.")
    raise InvalidArgumentError(f"no policy is called {name!r}. Use policy='lru'.")


__all__ = ["LeastRecentlyUsed", "Policy", "policy_named"]
