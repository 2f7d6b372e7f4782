"""A cache of responses in another process: carried as the place it is kept at, and opened anew there.

Libraries that spread work over processes (joblib, cloudpickle, dill) pickle a script's functions with all that they
have closed over. What cannot be opened there (a store in memory, a torch module that has to be watched) keeps nothing:
then each call is passed on.
"""

from __future__ import annotations

import atexit
import sys
import threading
from typing import Any

from lmstash.caches.responses.cache import Responses
from lmstash.caches.responses.who import Declared
from lmstash.errors import LmstashError
from lmstash.events import logger
from lmstash.forks import renew_after_fork
from lmstash.identity.fingerprint import Fingerprint
from lmstash.store.base import Store
from lmstash.store.memory import MemoryStore

_opened: dict[tuple[str, bool, bool], Store] = {}
atexit.register(_opened.clear)  # while what they close themselves with is there
_lock = threading.RLock()
renew_after_fork(sys.modules[__name__], _lock=threading.RLock)


def carried(cache: Responses) -> dict[str, Any]:
    """Return what `opened` makes a cache of the same answers of. A salt is among it."""
    store = cache.store
    given = {name: value for name, value in cache.given.items() if name not in ("self", "store")}
    path, model = getattr(store, "folder_path", None), given["model"]
    if path is None or not isinstance(cache.asker.who, Declared):
        return {"where": None, "given": given | {"model": "unknown", "strict_numerics": False, "assume_frozen": False}}
    if isinstance(model, Fingerprint):
        given["model"] = model.describe()
    return {"where": (str(path), bool(getattr(store, "read_only", False)), store.strict), "given": given}


def opened(cargo: dict[str, Any]) -> Responses:
    """Return a cache in this process; all that are kept at one place share one store."""
    given = dict(cargo["given"])
    if isinstance(given["model"], dict):
        given["model"] = Fingerprint.from_description(given["model"])
    return Responses(_store_at(cargo["where"]), **given)


def _store_at(where: tuple[str, bool, bool] | None) -> Store:
    if where is None:
        return MemoryStore(0)
    from lmstash.store.disk.store import DiskStore

    with _lock:
        if where not in _opened:
            try:
                _opened[where] = DiskStore(where[0], read_only=where[1], strict=where[2])
            except LmstashError as error:
                logger.warning("lmstash: %s Nothing is cached in this process.", error)
                _opened[where] = MemoryStore(0)
        return _opened[where]
