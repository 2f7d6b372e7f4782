"""What decides which ids a tokenizer makes of texts: read as a whole, or as its rules and what it makes of words.

A transformers tokenizer with a backend of the `tokenizers` library makes ids in four steps: its rules (added tokens,
normalizer, pre-tokenizer) cut a text into words, its model turns each word into ids by itself, and its post-processor
adds special ids. Rules are small. A model is large, keeps no count of its changes, and can be trained anew in place
and keep its size and most of its words. So it is either serialised (30 ms for 50,000 words), or asked again for each
distinct word of the texts in question, which are few where texts are many: together with equal rules that is proof
that the ids are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

from lmstash.identity.models.patched_library import LibraryParts

_HARMLESS = frozenset({"padding_side", "verbose", "deprecation_warnings"})
"""Settings that decide how batches are padded and what is printed: the index does neither, and others change them."""
_RANDOM = ("dropout", "alpha", "nbest_size")
_WORDS_SHARE = 3
"""Words pay where texts have this many times as many tokens as distinct words."""
_TEXTS_PER_LOOK = 64
"""How often one looks whether they still may: the first texts have more new words than later ones."""
_id = attrgetter("id")
_SAMPLED = 64
"""Words of the model that are in the digest of the rules."""


class TokenizerState:
    """One tokenizer, read when asked. Threads may share it as far as they may share the tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer of any kind."""
        self._tokenizer = tokenizer

    def whole(self) -> bytes | None:
        """Return a digest of all that decides what ids come out, None when that cannot be told."""
        found = self._facts()
        if found is None:
            return None
        backend, digest = found
        try:
            digest.update(b"whole\0" + backend.__getstate__())
        except Exception:  # parts of it are written in Python
            return None
        return digest.digest()

    def rules(self) -> bytes | None:
        """Return a digest of all that decides what ids come out but the model, None when that cannot be told.

        A few words of the model are in it, so that other models are seldom mistaken for this one (`ids_of_words` does
        not mistake them).
        """
        found = self._facts()
        if found is None or found[0].pre_tokenizer is None:
            return None
        backend, digest = found
        try:
            parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
            digest.update(b"rules\0")
            for part in parts:
                state = b"" if part is None else part.__getstate__()
                digest.update(len(state).to_bytes(8, "big") + state)
            size = backend.get_vocab_size(False)
            added = sorted((number, repr(token)) for number, token in backend.get_added_tokens_decoder().items())
            some = [backend.id_to_token(number) for number in range(0, size, -(-size // _SAMPLED))] if size else []
        except Exception:  # parts of it are written in Python
            return None
        digest.update(repr((backend.encode_special_tokens, added, size, some)).encode("utf-8", "surrogatepass"))
        return digest.digest()

    def ids_of_words(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return how many ids the model makes of each word now, and all of them in a row. Costs 2 us a word."""
        self.forget_words()
        made = list(map(self._tokenizer.backend_tokenizer.model.tokenize, words))
        return list(map(len, made)), list(map(_id, chain.from_iterable(made)))

    def forget_words(self) -> None:
        """Let the model make words anew: a BPE model remembers some, also of before it was trained anew in place."""
        clear = getattr(self._tokenizer.backend_tokenizer.model, "_clear_cache", None)
        if callable(clear):
            clear()

    def words(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[str, list[int]] | None:
        """Return the distinct words of texts of which the tokenizer made `ids`, each with its own ids.

        None when they are too many to be worth it, or when it did not make the ids word by word in the way it should.
        """
        backend = self._tokenizer.backend_tokenizer
        normalizer, cut, model = backend.normalizer, backend.pre_tokenizer.pre_tokenize_str, backend.model
        added = backend.get_added_tokens_decoder().keys()
        n_special = backend.num_special_tokens_to_add(False)
        first: int | None = None
        found: dict[str, list[int]] = {}
        n_tokens = 0
        for number, (text, made) in enumerate(zip(texts, ids, strict=True), 1):
            inner: list[int] = []
            for word, _ in cut(normalizer.normalize_str(text) if normalizer is not None else text):
                if word not in found:
                    if "\0" in word:
                        return None  # it would not be found again in a list of words
                    found[word] = [token.id for token in model.tokenize(word)]
                inner += found[word]
            if first is None:
                places = range(n_special + 1)
                first = next((at for at in places if list(made[at : at + len(inner)]) == inner), None)
            # An added token in a text is cut out before its words are made, in ways that only the tokenizer knows.
            if first is None or len(made) != len(inner) + n_special or not added.isdisjoint(inner):
                return None
            if list(made[first : first + len(inner)]) != inner:
                return None
            n_tokens += len(inner)
            if number % _TEXTS_PER_LOOK == 0 and 2 * len(found) > n_tokens:
                return None
        return found if 0 < _WORDS_SHARE * len(found) <= n_tokens else None

    def _facts(self) -> tuple[Any, Any] | None:
        """Return the backend, and a digest of what is around it; None for one whose ids cannot be told beforehand."""
        import tokenizers
        import transformers

        tokenizer = self._tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        kind = type(tokenizer)
        if type(backend) is not tokenizers.Tokenizer or not kind.__module__.startswith("transformers."):
            return None
        parts = _parts_of(kind)
        parts.look()
        if parts.found:  # somebody's code makes the ids
            return None
        model = backend.model
        if any(getattr(model, name, None) is not None for name in _RANDOM):
            return None
        settings = {name: value for name, value in vars(tokenizer).items() if value is not backend}
        if "__call__" in settings:
            return None
        told = sorted((name, repr(value)) for name, value in settings.items() if name not in _HARMLESS)
        if any(" at 0x" in value for _, value in told):
            return None  # an address says nothing of what lies there
        # As a call without them leaves the backend: what batches were padded to meanwhile does not matter.
        if backend.padding is not None:
            backend.no_padding()
        if backend.truncation is not None:
            backend.no_truncation()
        versions = (transformers.__version__, tokenizers.__version__)
        facts = (f"{kind.__module__}.{kind.__qualname__}", versions, told)
        return backend, hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass") + b"\0")


@lru_cache(maxsize=256)
def _parts_of(kind: type) -> LibraryParts:
    """Return the modules that a class of transformers and its bases lie in."""
    modules = {base.__module__ for base in kind.__mro__}
    return LibraryParts({each for each in modules if each.startswith("transformers.")})
