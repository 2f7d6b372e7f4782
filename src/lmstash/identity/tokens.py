"""Token ids as bytes, and their digest. What a model saw is its token ids, never the text they came from."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from typing import Any, Protocol, cast

from lmstash.errors import InvalidArgumentError

_DOMAIN = b"lmstash tokens\0\1"


class TokenArray(Protocol):
    """A 1-D integer array: numpy's, torch's, or anything that numpy understands."""

    @property
    def shape(self) -> Any:
        """Length of each dimension."""

    @property
    def dtype(self) -> Any:
        """Type of an element."""


TokenIds = Sequence[int] | TokenArray
"""Token ids, each from 0 to 2**32 - 1: a list, a tuple, a range, an `array`, or a 1-D numpy array or torch tensor."""


def token_bytes(ids: TokenIds) -> bytes:
    """Return `ids` as little-endian uint32, 4 bytes per token. Costs about 10 ns per id of a list.

    Raises:
        InvalidArgumentError: `ids` is not one-dimensional, or an id is not an integer from 0 to 2**32 - 1.
    """
    if isinstance(ids, str | bytes | bytearray):
        raise InvalidArgumentError("expected token ids, got text. Tokenize it first.")
    if hasattr(ids, "dtype") and hasattr(ids, "shape"):  # isinstance on a protocol costs 20 us
        return _array_bytes(ids)
    try:
        data = array("I", cast(Sequence[int], ids))
    except (TypeError, OverflowError, ValueError) as error:
        raise InvalidArgumentError(f"token ids must be integers from 0 to 2**32 - 1: {error}") from None
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()


def _array_bytes(ids: Any) -> bytes:
    if hasattr(ids, "detach"):  # torch; under its own name so that torch need not be imported
        ids = ids.detach().cpu().numpy()
    if not hasattr(ids, "astype"):
        raise InvalidArgumentError(f"token ids cannot be a {type(ids).__name__}. Give a list, numpy array or tensor.")
    if len(ids.shape) != 1:
        raise InvalidArgumentError(f"token ids must have one dimension, not shape {tuple(ids.shape)}. Give one row.")
    if ids.dtype.kind not in "iu":
        raise InvalidArgumentError(f"token ids must be integers, not {ids.dtype}")
    fits = ids.dtype.kind == "u" and ids.dtype.itemsize <= 4
    if not fits and ids.size and (int(ids.min()) < 0 or int(ids.max()) >= 2**32):
        raise InvalidArgumentError("token ids must be integers from 0 to 2**32 - 1")
    return ids.astype("<u4").tobytes()


def digest_text(text: str) -> str:
    """Return 32 hex digits that name a text, so that what was computed over it can be found and forgotten."""
    return hashlib.sha256(b"lmstash text\0\1" + text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def digest_tokens(ids: TokenIds) -> bytes:
    """Return a 32-byte SHA-256 of the token ids and of how many they are.

    A list, a numpy array and a tensor of the same ids have the same digest.

    Raises:
        InvalidArgumentError: As `token_bytes`.
    """
    return digest_token_bytes(token_bytes(ids))


def digest_token_bytes(data: bytes) -> bytes:
    """Return what `digest_tokens` returns for the ids that `token_bytes` made into `data`."""
    return hashlib.sha256(_DOMAIN + len(data).to_bytes(8, "big") + data).digest()
