"""Images of PIL as bytes that give an equal image: the pixels of one picture, or the file of several frames."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import CorruptEntryError, InvalidArgumentError
from lmstash.identity.media import media_of
from lmstash.store.base import Buffer

_LENGTH = struct.Struct("<I")
_FRAME_FORMATS = {"GIF": "GIF", "WEBP": "WEBP", "PNG": "PNG", "TIFF": "TIFF", "MPO": "JPEG", "AVIF": "AVIF"}
"""Which are read again, and by which reader: these need no other program."""

_UNREADABLE = (struct.error, LookupError, TypeError, ValueError, OSError, EOFError, SyntaxError)


def encode_image(image: Any) -> Sequence[Buffer]:
    """Return what `decode_image` makes an equal image of one frame from."""
    info = {name: value for name, value in image.info.items() if isinstance(value, str | bytes | int | float | tuple)}
    exif = image.getexif().tobytes() if hasattr(image, "getexif") else b""
    palette = image.palette
    told = {
        "mode": image.mode,
        "size": list(image.size),
        "palette": None if palette is None else [palette.mode, bytes(palette.palette)],
        "info": {name: value for name, value in info.items() if name != "exif"},
        "exif": exif,
    }
    return [*_head(told), image.tobytes()]


def decode_image(value: memoryview) -> Any:
    """Return the image.

    Raises:
        CorruptEntryError: It is no such image.
    """
    from PIL import Image

    try:
        told, pixels = _split(value)
        image = Image.frombytes(told["mode"], tuple(told["size"]), bytes(pixels))
        if told["palette"] is not None:
            image.putpalette(told["palette"][1], told["palette"][0])
        image.info.update(told["info"])
        if told["exif"]:
            image.info["exif"] = told["exif"]
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise CorruptEntryError(f"a kept image cannot be read: {error}") from error
    return image


def encode_frames(image: Any, digest: str, file: bytes | None) -> Sequence[Buffer]:
    """Return what `decode_frames` makes an equal image of several frames from: its file, and which frame it is at.

    Args:
        image: As PIL opened it: it reads its frames from the file when they are asked for.
        digest: What `media_of` says of it.
        file: What `file_of` says of it.

    Raises:
        InvalidArgumentError: Its file does not give this image: it was changed, or its file is gone.
    """
    told = {"format": image.format, "frame": image.tell()}
    try:
        if file is None:
            raise InvalidArgumentError("PIL has let go of its file")
        decode_frames(memoryview(b"".join([*_head(told), file])), digest)
    except (InvalidArgumentError, CorruptEntryError) as error:
        raise InvalidArgumentError(
            f"an image of several frames cannot be kept by value ({error}): keep its frames, or its path"
        ) from error
    return [*_head(told), file]


def decode_frames(value: memoryview, digest: str) -> Any:
    """Return the image. Reads all of its frames, to be sure of them.

    Raises:
        CorruptEntryError: It is no such image.
    """
    from PIL import Image

    try:
        told, data = _split(value)
        image = Image.open(io.BytesIO(data), formats=[_FRAME_FORMATS[told["format"]]])
        image.seek(told["frame"])
        found = media_of(image)
    except (*_UNREADABLE, InvalidArgumentError) as error:
        raise CorruptEntryError(f"a kept image cannot be read: {error}") from error
    if found is None or found.digest != digest:
        raise CorruptEntryError("a kept image of several frames is another one, as PIL reads it here")
    return image


def _head(told: dict[str, Any]) -> list[bytes]:
    head = encode_record(told)
    return [_LENGTH.pack(len(head)), head]


def _split(value: memoryview) -> tuple[Any, memoryview]:
    (length,) = _LENGTH.unpack_from(value)
    return decode_record(value[_LENGTH.size : _LENGTH.size + length]), value[_LENGTH.size + length :]
