"""Images, arrays and tensors as entries of their own, under their content: each once, whoever holds it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lmstash.adapters.lmms_eval.saved_requests.images import (
    decode_frames,
    decode_image,
    encode_frames,
    encode_image,
    head_of_frames,
    head_of_image,
)
from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import InvalidArgumentError, LmstashError
from lmstash.identity.content.media import file_of, media_of
from lmstash.identity.keys import KeyFamily
from lmstash.store.base import Buffer, Store, Write

NAMESPACE = "lmms_eval/media"


class MissingBlobError(LmstashError):
    """A saved value holds media that are no longer kept."""


class Blobs:
    """The media of one value that is saved or loaded.

    Args:
        store: Where they are kept.
        salt: Of the stash.
        compress: Makes bytes smaller, if they are to be.
    """

    def __init__(self, store: Store, salt: str | bytes | None, compress: Callable[[Any], bytes] | None = None) -> None:
        self._store = store
        self._family = KeyFamily({"what": NAMESPACE, "salt": salt}, ("digest",))
        self._compress = compress
        self._read: dict[str, Any] = {}
        self._writes: dict[bytes, Write] = {}
        self.names: list[str] = []
        """Digests of what the value holds."""

    def take(self, value: Any) -> tuple[str, str] | None:
        """Return the kind and the name of a piece of media, which is written by `flush`; None for anything else.

        Raises:
            InvalidArgumentError: It is media that cannot be kept by value.
        """
        kind = _kind(value)
        if kind is None:
            return None
        file = file_of(value) if kind == "image" else None  # PIL may let go of it as it is looked at
        found = media_of(value)
        if found is None:
            return None
        name, head = found.digest, b""
        if kind == "image":
            # What an image says beside its pixels, and how long its frames are shown, comes back with it: it counts.
            try:
                kind = "frames" if len(found.facts) > 3 else kind  # mode, width, height, and how many there are
                head = head_of_image(value) if kind == "image" else head_of_frames(value, name)
            except Exception as error:  # PIL has errors of many kinds
                raise InvalidArgumentError(f"an image cannot be read: {error}") from error
            name = hashlib.sha256(b"".join([kind.encode(), name.encode(), head, file or b""])).hexdigest()
        key = self._family.digest(name)
        if name not in self._read:
            self._read[name] = value
            self.names.append(name)
            if not self._store.contains(key):
                parts = _encode(kind, value, head, file)
                packed = [b"z", self._compress(parts)] if self._compress is not None else [b"-", *parts]
                self._writes[key] = Write(
                    key, packed, namespace=NAMESPACE, meta={"media": kind, "about": list(found.facts)}
                )
        return kind, name

    def flush(self) -> bool:
        """Write what is new; returns whether all of it is kept."""
        writes = list(self._writes.values())
        self._writes.clear()
        return not writes or self._store.put_many(writes, replace=False) >= len(writes)

    def give(self, kind: str, name: str) -> Any:
        """Return a piece of media, the same object each time.

        Raises:
            MissingBlobError: It is not kept any more.
            CorruptEntryError: What is kept is not such a piece.
        """
        if name not in self._read:
            value = self._store.get(self._family.digest(name))
            if value is None:
                raise MissingBlobError(f"media {name[:16]} of a saved value are not kept any more")
            self._read[name] = _decode(kind, _plain(value))
        return self._read[name]

    def key(self, name: str) -> bytes:
        """Return where a piece of media is kept."""
        return self._family.digest(name)


def _kind(value: Any) -> str | None:
    pil, numpy, torch = (sys.modules.get(name) for name in ("PIL.Image", "numpy", "torch"))
    if pil is not None and isinstance(value, pil.Image):
        return "image"
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return "scalar" if isinstance(value, numpy.generic) else "array"
    if torch is not None and isinstance(value, torch.Tensor):
        return "tensor"
    return None


def _encode(kind: str, value: Any, head: bytes, file: bytes | None) -> Sequence[Buffer]:
    if kind == "image":
        return encode_image(value, head)
    if kind == "frames":
        return encode_frames(file, head)
    from lmstash.codecs.tensors import encode_tensors

    if kind == "tensor":
        return encode_tensors({"value": value.detach().resolve_conj().resolve_neg()})
    import numpy

    array = numpy.asarray(value)
    if array.dtype.kind in "US":
        text = encode_record([array.dtype.str, list(array.shape), array.reshape(-1).tolist()])
        return [b"text", text]
    return encode_tensors({"value": array})


def _decode(kind: str, value: memoryview) -> Any:
    if kind == "image":
        return decode_image(value)
    if kind == "frames":
        return decode_frames(value)
    from lmstash.codecs.tensors import decode_tensors

    if kind == "tensor":
        return decode_tensors(value, framework="torch", copy=True)["value"]
    import numpy

    if bytes(value[:4]) == b"text":
        dtype, shape, items = decode_record(value[4:])
        array = numpy.array(items, dtype=dtype).reshape(shape)
    else:
        array = decode_tensors(value, framework="numpy", copy=True)["value"]
    return array[()] if kind == "scalar" else array


def _plain(value: memoryview) -> memoryview:
    if bytes(value[:1]) == b"z":
        from lmstash.codecs.compression import decompress

        return decompress(value[1:], 1 << 40)
    return value[1:]
