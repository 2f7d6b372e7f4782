"""Images, arrays, audio, files and long texts in a request, by what they hold: two that differ have two digests.

Nothing is imported for it: an object of PIL, numpy or torch can only be there if its package is loaded.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.identity.encoding import Component, encode

_DOMAIN = b"lmstash media\0\1"
_MOST_FRAMES = 100_000


@dataclass(frozen=True, slots=True)
class Media:
    """What stands for a piece of media in a request."""

    kind: str
    """`image`, `array`, `tensor`, `file`, `bytes`, `text`, `audio` or `video`."""
    digest: str
    """64 hex digits: SHA-256 of the content and of what it needs to be understood (size, mode, dtype, shape)."""
    facts: tuple[Component, ...]
    """For people: size, shape, length, name."""

    def describe(self) -> list[Component]:
        """Return it as what a record can hold. The digest alone identifies; file names are facts, not identity."""
        return [self.kind, self.digest]


def media_of(value: Any) -> Media | None:
    """Return what stands for `value`; None if it is no media that is known here.

    Knows images of PIL (all frames), arrays of numpy, tensors of torch, `pathlib` paths (by the file's content), bytes,
    and audio and video as `datasets` and `torchcodec` hand them out: anything with `get_all_samples()`, or a sequence
    of frames with `get_frames_at`. Does not change the object. Costs a SHA-256 of the content (about 1.5 GB/s).

    Raises:
        InvalidArgumentError: It is media, but its content cannot be read.
    """
    for known in _READERS:
        try:
            found = known(value)
        except InvalidArgumentError:
            raise
        except Exception as error:  # other packages' objects: a lost device, a lazy file that is gone
            raise InvalidArgumentError(f"a {type(value).__qualname__} cannot be read: {error}") from error
        if found is not None:
            return found
    return None


def bytes_media(data: bytes) -> Media:
    """Return what stands for bytes."""
    return _media("bytes", (len(data),), data)


def text_media(text: str) -> Media:
    """Return what stands for a long text, such as an image written as a `data:` URL."""
    data = text.encode("utf-8", "surrogatepass")
    return _media("text", (len(data),), data, facts=(text[:32], len(data)))


def _media(kind: str, about: tuple[Component, ...], *parts: Any, facts: tuple[Component, ...] | None = None) -> Media:
    state = hashlib.sha256(_DOMAIN + encode((kind, about)))
    for part in parts:
        state.update(part)
    return Media(kind, state.hexdigest(), about if facts is None else facts)


def file_of(image: Any) -> bytes | None:
    """Return the file that an image of PIL reads its frames from; None if it has one at most, or PIL let go of it.

    Never raises.
    """
    if not hasattr(type(image), "n_frames") and getattr(image, "n_frames", 1) == 1:
        return None
    files: tuple[Any, ...] = getattr(image, "_fp", None), getattr(image, "fp", None)
    for file in files:
        try:
            here = file.tell()
            file.seek(0)
            try:
                return file.read()
            finally:
                file.seek(here)
        except Exception:  # none, a closed one, what stands for one in PIL; or somebody's own, which may do anything
            continue
    return None


def _image(value: Any) -> Media | None:
    pil = sys.modules.get("PIL.Image")
    if pil is None or not isinstance(value, pil.Image):
        return None
    try:
        with _naming:
            # To count its frames, or to look at another one, can lose what was drawn on this one, and PIL finds no
            # way back in some files: so another reader does that.
            data = file_of(value)
            reader = value if data is None else type(value)(io.BytesIO(data))
            n_frames = int(getattr(reader, "n_frames", 1))
            if n_frames == 1:
                return _media("image", *_frame(value), facts=(value.mode, *value.size))
            if reader is value:
                raise InvalidArgumentError("PIL has let go of its file, so its frames cannot be looked at")
            if n_frames > _MOST_FRAMES:
                raise InvalidArgumentError(f"an image of {n_frames:,} frames is too long to be part of a key")
            return Media("image", _digest_of_frames(value, reader, n_frames), (value.mode, *value.size, n_frames))
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InvalidArgumentError(f"an image cannot be read: {error}") from error


_naming = threading.RLock()
"""One image is named at a time: threads that name the same one would read one file object."""


def _digest_of_frames(image: Any, reader: Any, n_frames: int) -> str:
    """Hash which frame it is at, that one as it is, and all frames: whoever is handed the image sees that one first."""
    here = image.tell()
    state = hashlib.sha256(_DOMAIN + encode(("frames", n_frames, here)))

    def add(frame: Any) -> None:
        about, data = _frame(frame)
        times = tuple(repr(frame.info.get(name)) for name in ("duration", "loop"))
        state.update(encode((about, times)) + hashlib.sha256(data).digest())

    reader.seek(here)
    loaded = vars(image).get("_im", vars(image).get("im")) is not None
    if here and loaded and (getattr(reader, "disposal_method", 0) > 2 or getattr(reader, "dispose_op", 0) == 2):
        # The next frame is drawn over the one before this, which PIL remembers and somebody may have drawn on.
        raise InvalidArgumentError("its frame is one that is taken back before the next; go to another one, or seek(0)")
    # One that was not looked at yet is left so: PIL lets go of some files then.
    add(image if loaded or (image.mode, image.size) != (reader.mode, reader.size) else reader)
    for number in range(n_frames):
        reader.seek(number)
        add(reader)
    return state.hexdigest()


def _frame(image: Any) -> tuple[tuple[Component, ...], bytes]:
    """Return what a frame needs to be understood, and its pixels."""
    data = image.tobytes()
    palette = image.getpalette(None) if image.mode in ("P", "PA") else None
    # A program that writes the image into a file again takes these along, and a decoder may heed them.
    profile, exif = image.info.get("icc_profile"), image.info.get("exif")
    beside = tuple(each if isinstance(each, bytes) else None for each in (profile, exif))
    orientation = image.getexif().get(0x0112) if hasattr(image, "getexif") else None
    transparency = image.info.get("transparency")
    if not isinstance(transparency, bytes | int | tuple | str | None):
        transparency = repr(transparency)
    return (image.mode, *image.size, palette, orientation, transparency, *beside), data


def _array(value: Any) -> Media | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    array = numpy.asarray(value)
    if array.dtype.hasobject or isinstance(value, numpy.ma.MaskedArray):
        raise InvalidArgumentError("an array of Python objects, or a masked one, cannot be part of a key")
    about = (array.dtype.str if array.dtype.names is None else repr(array.dtype.descr), tuple(map(int, array.shape)))
    if isinstance(value, numpy.ndarray) and type(value) not in (numpy.ndarray, numpy.memmap):
        about = (*about, type(value).__qualname__)  # a matrix, say, multiplies otherwise
    return _media("array", about, numpy.ascontiguousarray(array).tobytes())


def _tensor(value: Any) -> Media | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise InvalidArgumentError(f"a tensor of layout {value.layout} cannot be part of a key; make it dense first")
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    about = (str(plain.dtype), tuple(plain.shape))
    return _media("tensor", about, plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")


def _file(value: Any) -> Media | None:
    if not isinstance(value, PurePath):
        return None
    from lmstash.identity.content.files import file_digest, stamp_of

    path = os.path.abspath(os.path.expanduser(value))
    stamp = stamp_of(path)
    if stamp is None or not Path(path).is_file():
        raise InvalidArgumentError(f"{path} is part of a request, but there is no such file")
    try:
        content = file_digest(path, stamp)
    except UnsupportedModelError as error:
        raise InvalidArgumentError(f"{path} is part of a request, but cannot be read as it is now") from error
    # The suffix counts: programs choose a decoder by it.
    return _media("file", (stamp.n_bytes, Path(path).suffix.lower()), content, facts=(Path(path).name, stamp.n_bytes))


def _bytes(value: Any) -> Media | None:
    return bytes_media(bytes(value)) if isinstance(value, bytes | bytearray | memoryview) else None


def _decoder(value: Any) -> Media | None:
    """Audio and video decoders of torchcodec, as `datasets` hands them out: by their samples."""
    if not type(value).__module__.startswith(("torchcodec.", "datasets.")):
        return None
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        inner = _tensor(samples.data)
        return None if inner is None else _media("audio", (inner.digest, int(samples.sample_rate)))
    if hasattr(value, "get_frames_at") and hasattr(value, "__len__"):
        state = hashlib.sha256(_DOMAIN + encode(("video", len(value))))
        for number in range(len(value)):
            inner = _tensor(value[number])
            if inner is None:
                return None
            state.update(bytes.fromhex(inner.digest))
        rate = getattr(getattr(value, "metadata", None), "average_fps", None)
        state.update(encode(None if rate is None else float(rate)))
        return Media("video", state.hexdigest(), (len(value),))
    return None


_READERS: tuple[Callable[[Any], Media | None], ...] = (_bytes, _image, _array, _tensor, _file, _decoder)
