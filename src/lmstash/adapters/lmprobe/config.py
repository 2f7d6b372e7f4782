"""What lmprobe keeps in globals: where the cache is, how large it may become, and in which dtype it stores.

Environment variables are read when the cache is first used, never at import, and a value that cannot be read is logged
once and ignored: `LMPROBE_CACHE_MAX_GB` and `LMPROBE_CACHE_DTYPE`. Where the cache lies is lmstash's own setting
(`LMSTASH_DIR`, see `lmstash.open`): the folder that lmprobe's own variables name holds another format, which
`import_cache` reads.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmstash.errors import InvalidArgumentError
from lmstash.events import logger
from lmstash.unset import UNSET

if TYPE_CHECKING:
    from lmstash.stash import Stash

DTYPES = ("float16", "bfloat16", "float32")
_BACKEND_METHODS = ("exists", "read_bytes", "write_bytes", "delete", "list_keys", "size", "mtime", "touch")

_lock = threading.RLock()
_stash: Stash | None = None
_limit_bytes: Any = UNSET
_dtype: Any = UNSET
_warned: set[str] = set()


def set_cache_backend(backend: Any) -> None:
    """Set where activations are kept, for the whole process.

    Args:
        backend: A folder or `"memory://"`; a `Stash` or a store of lmstash; a `CacheBackend` of your own (lmprobe's
            own backends fit too); or None for the default, which is opened at the next use (see `lmstash.open`).

    Raises:
        InvalidArgumentError: It is none of these, or names a service (`s3://`, `gs://`) that this release cannot use.
    """
    global _stash
    opened = None if backend is None else as_stash(backend)
    with _lock:
        _stash = opened
        if opened is not None:
            _apply_limit(opened)


def set_cache_limit(gb: float | None = None) -> None:
    """Set how much the cache may take, in GiB. The limit holds while writing, so `evict()` finds nothing left to do.

    Args:
        gb: None is unlimited. 0 switches caching off: nothing is served and nothing kept, what is there stays. Anything
            else is the limit of the whole store, index and other kinds of entries included; it is enforced at once.

    Raises:
        InvalidArgumentError: It is negative or not a number.
    """
    global _limit_bytes
    if gb is not None and (isinstance(gb, bool) or not isinstance(gb, (int, float)) or not 0 <= gb < math.inf):
        raise InvalidArgumentError(f"the cache limit is a number of GiB from 0 up, or None; got {gb!r}")
    with _lock:
        _limit_bytes = None if gb is None else int(gb * 1024**3)
        if _stash is not None:
            _apply_limit(_stash)


def set_cache_dtype(dtype: str | None = None) -> None:
    """Set in which dtype new activations are stored: halves what they take, at the cost of exactness.

    Values are then returned in that dtype, in the run that computes them too, so that a cold and a warm run agree bit
    for bit. A tensor that the dtype cannot hold (float16 ends at 65,504) is kept in float32; a result with such a
    tensor in it, or with one that was imported in a wider dtype, is float32 as a whole. Entries of another storage
    dtype are not served.

    Args:
        dtype: "float16", "bfloat16", "float32", or None for the extractor's own (exact).

    Raises:
        InvalidArgumentError: It is none of these.
    """
    global _dtype
    if dtype is not None and dtype not in DTYPES:
        raise InvalidArgumentError(f"the storage dtype is one of {', '.join(DTYPES)} or None; got {dtype!r}")
    with _lock:
        _dtype = dtype


def enable_cache_logging(level: int = logging.INFO) -> None:
    """Show what the cache does: summaries at `logging.INFO`, each hit and miss with its reason at `logging.DEBUG`.

    Adds one handler to the logger `lmstash`, however often it is called, and none where the logger has one already.
    """
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


def current_stash() -> Stash:
    """Return the stash in use, opening the default one if none was set."""
    global _stash
    with _lock:
        if _stash is None:
            import lmstash

            _stash = lmstash.open()
            _apply_limit(_stash)
        return _stash


def storage_dtype() -> str | None:
    """Return what `set_cache_dtype` or `LMPROBE_CACHE_DTYPE` says."""
    if _dtype is not UNSET:
        return _dtype
    named = os.environ.get("LMPROBE_CACHE_DTYPE")
    if named and named not in DTYPES:
        _warn_once("LMPROBE_CACHE_DTYPE", f"is {named!r}, not one of {', '.join(DTYPES)}; it is ignored")
        return None
    return named or None


def limit_bytes() -> Any:
    """Return the limit that was set here: bytes, None for unlimited, or `UNSET` when the store's own one counts."""
    if _limit_bytes is not UNSET:
        return _limit_bytes
    named = os.environ.get("LMPROBE_CACHE_MAX_GB")
    if not named:
        return UNSET
    try:
        gb = float(named)
        if not 0 <= gb < math.inf:
            raise ValueError(named)
    except ValueError:
        _warn_once("LMPROBE_CACHE_MAX_GB", f"is {named!r}, not a number of GiB; it is ignored")
        return UNSET
    return int(gb * 1024**3)


def is_disabled() -> bool:
    """Whether the limit is 0: nothing is served and nothing kept."""
    return limit_bytes() == 0


def as_stash(backend: Any) -> Stash:
    """Return `backend` (anything that `set_cache_backend` takes) as a stash.

    Raises:
        InvalidArgumentError: It cannot be one.
    """
    from lmstash.stash import Stash

    if isinstance(backend, Stash):
        return backend
    if isinstance(backend, (str, Path)):
        if isinstance(backend, str) and "://" in backend and not backend.startswith("memory://"):
            raise InvalidArgumentError(
                f"{backend}: caches in an object store come with lmstash's object-store tier, which this release does "
                "not have yet. Give a folder, 'memory://', or a CacheBackend of your own."
            )
        import lmstash

        return lmstash.open(backend)
    if hasattr(backend, "fetch_many") and hasattr(backend, "put_many"):
        return Stash(backend)
    if all(callable(getattr(backend, name, None)) for name in _BACKEND_METHODS):
        from lmstash.adapters.lmprobe.backend_store import BackendStore

        return Stash(BackendStore(backend))
    raise InvalidArgumentError(
        "a cache backend is a folder, 'memory://', a Stash, a store, a CacheBackend or None; "
        f"got {type(backend).__name__}"
    )


def reset() -> None:
    """Forget everything set here, as in a fresh process; nothing kept is touched."""
    global _stash, _limit_bytes, _dtype
    with _lock:
        _stash, _limit_bytes, _dtype = None, UNSET, UNSET
        _warned.clear()


def _apply_limit(stash: Stash) -> None:
    limit = limit_bytes()
    # 0 switches this adapter off. It must not empty a store that others share.
    if limit is not UNSET and limit != 0:
        stash.store.set_capacity(limit)


def _warn_once(name: str, message: str) -> None:
    if name not in _warned:
        _warned.add(name)
        logger.warning("lmstash: %s %s", name, message)
