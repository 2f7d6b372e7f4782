"""Images of PIL as bytes that give an equal image: the pixels of one picture, or the file of several frames.

Each is a head, a record of what is beside the pixels, and a body.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import CorruptEntryError, InvalidArgumentError
from lmstash.identity.content.media import media_of
from lmstash.store.base import Buffer

_LENGTH = struct.Struct("<I")
_FRAME_FORMATS = {"GIF": "GIF", "WEBP": "WEBP", "PNG": "PNG", "TIFF": "TIFF", "MPO": "JPEG", "AVIF": "AVIF"}
"""Which are read again, and by which reader: these need no other program."""


def head_of_image(image: Any) -> bytes:
    """Return what an image of one frame says beside its pixels: all that comes back with them."""
    info = {name: value for name, value in image.info.items() if isinstance(value, str | bytes | int | float | tuple)}
    exif = image.getexif() if hasattr(image, "getexif") else None
    palette = image.palette
    told = {
        "mode": image.mode,
        "size": list(image.size),
        "palette": None if palette is None else [palette.mode, bytes(palette.palette)],
        "info": {name: value for name, value in info.items() if name != "exif"},
        "exif": exif.tobytes() if exif else b"",
    }
    return encode_record(told)


def head_of_frames(image: Any, digest: str) -> bytes:
    """Return what an image of several frames is beside its file; `digest` is what `media_of` says of it."""
    return encode_record({"format": image.format, "frame": image.tell(), "media": digest})


def encode_image(image: Any, head: bytes) -> Sequence[Buffer]:
    """Return what `decode_image` makes an equal image of one frame from."""
    return [_LENGTH.pack(len(head)), head, image.tobytes()]


def encode_frames(file: bytes | None, head: bytes) -> Sequence[Buffer]:
    """Return what `decode_frames` makes an equal image of several frames from: its file, and which frame it is at.

    Raises:
        InvalidArgumentError: The file does not give this image: somebody drew on it, or PIL has let go of its file.
    """
    try:
        if file is None:
            raise InvalidArgumentError("PIL has let go of its file")
        parts = [_LENGTH.pack(len(head)), head, file]
        decode_frames(memoryview(b"".join(parts)))
    except (InvalidArgumentError, CorruptEntryError) as error:
        raise InvalidArgumentError(
            f"an image of several frames cannot be kept by value ({error}): keep its frames, or its path"
        ) from error
    return parts


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
    except Exception as error:  # PIL has errors of many kinds
        raise CorruptEntryError(f"a kept image cannot be read: {error}") from error
    return image


def decode_frames(value: memoryview) -> Any:
    """Return the image. Reads all of its frames, to be sure of them.

    Raises:
        CorruptEntryError: It is no such image, or this version of PIL reads another one from its file.
    """
    from PIL import Image

    try:
        told, file = _split(value)
        image = Image.open(io.BytesIO(file), formats=[_FRAME_FORMATS[told["format"]]])
        image.seek(told["frame"])
        found = media_of(image)
    except Exception as error:  # PIL has errors of many kinds
        raise CorruptEntryError(f"a kept image cannot be read: {error}") from error
    if found is None or found.digest != told["media"]:
        raise CorruptEntryError("a kept image of several frames is another one, as PIL reads it here")
    return image


def _split(value: memoryview) -> tuple[Any, memoryview]:
    (length,) = _LENGTH.unpack_from(value)
    return decode_record(value[_LENGTH.size : _LENGTH.size + length]), value[_LENGTH.size + length :]
