"""LMCache's local disk tier, driven in process without a serving engine: the part that stores and loads one chunk.

Runs only in the `lmcache` environment (see `peers`). The tier keeps its index in memory, so `adopt` tells a new process
what lies in its folder; LMCache itself starts empty after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")


class LMCacheTier:
    """Chunks of `n_bytes` under integers, in files of a folder; buffered or around the page cache (`direct`)."""

    def __init__(self, folder: Path, n_bytes: int, *, direct: bool, pool_bytes: int) -> None:
        """Start the tier; its memory pool (touched, as in a serving engine) has room for `pool_bytes`."""
        import torch
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.memory_management import MemoryFormat
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
        from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

        logging.disable(logging.WARNING)
        self._shape = torch.Size([2, 1, n_bytes // (2 * 64 * 2), 64])
        self._dtype = torch.bfloat16
        self._format = MemoryFormat.KV_2LTD
        self.n_bytes = n_bytes
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=256,
            local_cpu=False,
            max_local_cpu_size=pool_bytes / 2**30,
            local_disk=f"file://{folder}/",
            max_local_disk_size=64.0,
            extra_config={"use_odirect": direct},
        )
        metadata = LMCacheMetadata("bench", 1, 1, 0, 0, self._dtype, (1, 2, 256, 1, 64))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._memory: Any = LocalCPUBackend(config, metadata, dst_device="cpu")
        self._disk: Any = LocalDiskBackend(config, self._loop, self._memory, dst_device="cpu", metadata=metadata)

    def put(self, number: int, value: Any) -> None:
        """Copy an array of bytes into the pool and hand it to the writer threads."""
        piece = self._memory.allocate(self._shape, self._dtype, self._format)
        while piece is None:
            piece = self._memory.allocate(self._shape, self._dtype, self._format)
        np.asarray(piece.byte_array)[:] = value
        self._disk.submit_put_task(self._key(number), piece)
        piece.ref_count_down()

    def wait(self) -> None:
        """Return once everything handed over is written (not: on the disk)."""
        while self._disk.disk_worker.put_tasks:
            time.sleep(0.0005)

    def adopt(self, numbers: range) -> None:
        """Put what lies in the folder back into the index."""
        for number in numbers:
            self._disk.insert_key(self._key(number), self.n_bytes, self._shape, self._dtype, self._format)

    def get(self, number: int) -> Any:
        """Return the chunk in the pool's memory; give it back with `release`."""
        return self._disk.get_blocking(self._key(number))

    def release(self, piece: Any) -> None:
        """Give the memory of a chunk back to the pool."""
        piece.ref_count_down()

    def close(self) -> None:
        """Stop the threads."""
        self._disk.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._memory.memory_allocator.close()

    def _key(self, number: int) -> Any:
        from lmcache.utils import CacheEngineKey

        return CacheEngineKey("bench", 1, 0, number, self._dtype)
