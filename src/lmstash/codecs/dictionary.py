"""zstd with a dictionary: short texts of one kind shrink to a half or a third, where alone they hardly would.

A dictionary is trained on samples (the COVER algorithm of zstd's `dictBuilder`). What was compressed with it can be
read with it alone, so it has to be kept as long as any such value. Needs the extra `zstd`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

from lmstash.codecs.compression import zstandard_module
from lmstash.codecs.header import Buffer
from lmstash.errors import CorruptEntryError

ID_BYTES = 8
DICTIONARY_BYTES = 32 << 10
_LEVEL = 3


def digest_id(data: Buffer) -> bytes:
    """Return what names a dictionary."""
    return hashlib.sha256(data).digest()[:ID_BYTES]


class Dictionary:
    """A trained dictionary. Threads may share it.

    Attributes:
        data: The dictionary itself, which is to be kept.
        id: The first 8 bytes of its SHA-256.
    """

    def __init__(self, data: bytes) -> None:
        """Take a dictionary as `train` made it.

        Raises:
            MissingDependencyError: zstandard is not installed.
        """
        self._zstandard = zstandard_module()
        self.data = data
        self.id = digest_id(data)
        trained: Any = self._zstandard.ZstdCompressionDict(data)
        self._compressor: Any = self._zstandard.ZstdCompressor(level=_LEVEL, dict_data=trained, write_dict_id=False)
        self._decompressor: Any = self._zstandard.ZstdDecompressor(dict_data=trained)
        self._lock = threading.RLock()  # neither may be used by two threads at a time

    @classmethod
    def train(cls, samples: Sequence[bytes]) -> Dictionary | None:
        """Return a dictionary for texts like these; None where they are too few or too short. Costs about 0.2 s.

        Raises:
            MissingDependencyError: zstandard is not installed.
        """
        zstandard = zstandard_module()
        try:
            return cls(zstandard.train_dictionary(DICTIONARY_BYTES, list(samples)).as_bytes())
        except zstandard.ZstdError:
            return None

    def compress(self, data: Buffer) -> bytes:
        """Return a zstd frame that states its size. Costs about 6 us for 400 bytes."""
        with self._lock:
            return self._compressor.compress(data)

    def decompress(self, frame: Buffer, max_bytes: int) -> bytes:
        """Return what `compress` was given. Costs about 2 us for 400 bytes.

        Raises:
            CorruptEntryError: The frame is damaged, or claims more than `max_bytes`.
        """
        try:
            size = self._zstandard.frame_content_size(frame)
            if not 0 <= size <= max_bytes:
                raise CorruptEntryError(f"compressed bytes claim {size} bytes; at most {max_bytes} are expected")
            with self._lock:
                return self._decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
        except self._zstandard.ZstdError as error:
            raise CorruptEntryError(f"compressed bytes are damaged: {error}") from error
