"""Which activations are of a prompt: by the digest of the token ids that each entry says it is over.

Raw values lie in pieces, which say in addition where they begin and which piece they follow. What the same tokens were
computed to after other ones is another prompt's and stays, unless the piece that it followed is gone, so that nobody
can tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmstash.caches.forgetting.trail import components, peeked
from lmstash.codecs.tensors import decode_header
from lmstash.errors import FormatError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.encoding import to_json
from lmstash.identity.tokens import digest_token_bytes
from lmstash.store.base import EntryInfo, Store

KIND = "activations"


def meant(store: Store, names: Sequence[bytes]) -> set[bytes]:
    """Return the keys of the entries over these token ids, of every model. Reads the values of those that may be."""
    prompts = [_Prompt(name) for name in names]
    gone: set[bytes] = set()
    pieces: list[tuple[int, EntryInfo]] = []
    longer: list[EntryInfo] = []
    for entry in store.entries(f"{KIND}/"):
        named = components(entry)
        digest, start = named.get("tokens"), named.get("start")
        if not isinstance(start, int):
            if any(digest == prompt.digest for prompt in prompts):
                gone.add(entry.key)
        elif any(digest == prompt.digest_at(start, entry.n_tokens) for prompt in prompts):
            pieces.append((start, entry))
        elif any(prompt.may_end_in(start, entry.n_tokens) for prompt in prompts):
            longer.append(entry)
    for entry, value in peeked(store, longer):
        rest = None if value is None else _tokens(value)
        start = components(entry)["start"]
        if isinstance(start, int) and any(prompt.ends_in(start, entry.n_tokens, rest) for prompt in prompts):
            pieces.append((start, entry))
    parents = list({entry.parent for _, entry in pieces if entry.parent})
    others = {key for key, there in zip(parents, store.contains_many(parents), strict=True) if there} if parents else ()
    for _, entry in sorted(pieces, key=lambda piece: piece[0]):
        if entry.parent in gone or entry.parent not in others:
            gone.add(entry.key)
    return gone


class _Prompt:
    """Token ids, as bytes."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._n_tokens = len(name) // 4
        self._rest = self._n_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        """Where what is left over after whole blocks begins."""
        self._digests: dict[tuple[int, int], object] = {}
        self.digest = to_json(digest_token_bytes(name))
        """As entries say it."""

    def digest_at(self, start: int, n_tokens: int) -> object:
        """Return the digest that a piece of the prompt there would say; None where there is none."""
        end = start + n_tokens
        if end > self._n_tokens or (end < self._n_tokens and n_tokens != BLOCK_TOKENS):
            return None
        place = start, n_tokens
        if place not in self._digests:
            self._digests[place] = to_json(digest_token_bytes(self._name[4 * start : 4 * end]))
        return self._digests[place]

    def may_end_in(self, start: int, n_tokens: int) -> bool:
        """Whether a piece is where the prompt ends within one that goes on."""
        return start == self._rest < self._n_tokens < start + n_tokens <= start + BLOCK_TOKENS

    def ends_in(self, start: int, n_tokens: int, tokens: bytes | None) -> bool:
        """Whether a piece that may be so begins with the end of the prompt; where its tokens are not kept, it may."""
        return self.may_end_in(start, n_tokens) and (tokens is None or tokens.startswith(self._name[4 * start :]))


def _tokens(value: memoryview) -> bytes | None:
    try:
        spec = decode_header(value).tensors.get("tokens")
    except FormatError:
        return None
    return None if spec is None else bytes(value[spec.offset : spec.offset + spec.nbytes])
