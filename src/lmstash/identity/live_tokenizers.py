"""Tokenizers that may change in place, where texts are answered: looked at again each time, and read when that differs.

Beside what `fingerprint_tokenizer` reads, it counts on which side they pad and how they put texts together.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lmstash.identity.encoding import Component
from lmstash.identity.tokenizer import fingerprint_tokenizer

_PADDING = "left"
"""Where batches are filled up by models that generate; only another side is named."""
_MOST = 64
_HELD_BY_RULES = frozenset({"_tokenizer", "backend_tokenizer"})


class LiveTokenizers:
    """Remembers fingerprints of tokenizers, as long as these look the same. Threads may share it."""

    def __init__(self) -> None:
        """Know none."""
        self._known: dict[int, tuple[Any, bytes, bytes]] = {}

    def told(self, tokenizer: Any) -> list[Component]:
        """Return what stands for a tokenizer as it is now. Costs some 10 ms, the first time 0.2 s.

        Raises:
            UnsupportedModelError: It is not a tokenizer that lmstash can take apart.
        """
        held = {name: each for name, each in vars(tokenizer).items() if name not in _HELD_BY_RULES}
        added = getattr(tokenizer, "added_tokens_decoder", None)
        looks = f"{rules_of(tokenizer)}\0{held!r}\0{added!r}".encode("utf-8", "surrogatepass")
        stamp, known = hashlib.sha256(looks).digest(), self._known.get(id(tokenizer))
        if known is None or known[0] is not tokenizer or known[1] != stamp:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[id(tokenizer)] = (tokenizer, stamp, fingerprint_tokenizer(tokenizer).digest)
        side = getattr(tokenizer, "padding_side", _PADDING)
        sides: list[Component] = [["padding side", str(side)]] if side != _PADDING else []
        return [known[2], *sides, *(["cleans up"] if _cleans_up(tokenizer) else [])]


def is_tokenizer(value: Any) -> bool:
    """Whether a value makes ids of texts, and says its vocabulary."""
    return callable(getattr(type(value), "get_vocab", None)) and hasattr(value, "encode")


def rules_of(tokenizer: Any) -> str:
    """Return all rules and words of a tokenizer, as a text that is equal as long as they are. Costs 10 ms.

    Padding and truncation, which a call sets as it likes, are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        return repr(sorted(tokenizer.get_vocab().items())) if hasattr(tokenizer, "get_vocab") else ""
    text: str = backend.to_str()
    return text.partition('"added_tokens"')[2] or text  # these two stand before it


def _cleans_up(tokenizer: Any) -> bool:
    """Whether it takes spaces out of the texts that it puts together, which changes no token."""
    return bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
