"""What shows that a tokenizer has changed in place, and what of it counts only where texts are answered."""

from __future__ import annotations

from typing import Any


def rules_of(tokenizer: Any) -> str:
    """Return all rules and words of a tokenizer, as a text that is equal as long as they are. Costs 20 ms.

    Padding and truncation, which a call sets as it likes, are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        return repr(sorted(tokenizer.get_vocab().items())) if hasattr(tokenizer, "get_vocab") else ""
    text: str = backend.to_str()
    return text.partition('"added_tokens"')[2] or text  # these two stand before it


def cleans_up(tokenizer: Any) -> bool:
    """Whether it takes spaces out of the texts that it puts together, which changes no token."""
    return bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
