"""Who computed what is in a context: known for certain, or not known."""

from __future__ import annotations

from typing import Any

from lmstash.adapters.llama_cpp.identity import Identity
from lmstash.errors import UnsupportedModelError


class Following:
    """Follows one sequence, from its first token on. Part of `Sequences`, which says how it is used."""

    _followed: int
    """Tokens from the start on that are known to be computed by `_origin`."""
    _origin: bytes | None
    _edits: int
    _identity: Identity

    def identity_now(self) -> bytes:
        """Return the digest of who computes now.

        Raises:
            UnsupportedModelError: It cannot be known.
        """
        return self._identity.refresh().digest

    def _start(self) -> None:
        """Note that a sequence begins."""
        self._origin, self._followed = None, -1
        try:
            self._edits = self._identity.context.edits
            self._origin = self.identity_now()
            self._followed = 0
        except UnsupportedModelError:
            pass  # whoever asks is told why

    def _is_undisturbed(self) -> bool:
        """Whether no adapter was changed and no memory edited since the sequence began."""
        try:
            return self._identity.context.edits == self._edits
        except UnsupportedModelError:
            return False

    def origin_now(self) -> bytes | None:
        """Return who computed all that is in the context; None when that is not known for certain."""
        here: Any = self
        if not 0 <= here.n_tokens <= self._followed or not self._is_undisturbed():
            return None
        try:
            return self._origin if self.identity_now() == self._origin else None
        except UnsupportedModelError:
            return None
