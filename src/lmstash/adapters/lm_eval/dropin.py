"""In place of `lm_eval.api.model.CachingLM`: what `use_cache=` and `--use_cache` drive."""

from __future__ import annotations

import atexit
import re
import threading
from pathlib import Path
from typing import Any

import lm_eval.api.model
from lm_eval.api.model import LM

import lmstash
from lmstash.adapters.lm_eval.cached import CachedLM
from lmstash.stash import Stash

_RANK = re.compile(r"_rank\d+\.db$")


class CachingLM(CachedLM):
    """Takes what the harness's `CachingLM` takes; all ranks share one folder."""

    made: list[CachingLM]
    """Those of this process, for reports."""

    def __init__(self, lm: LM, cache_db: str, **options: Any) -> None:
        """Wrap `lm`.

        Args:
            lm: The model.
            cache_db: As the harness says it, `PREFIX_rankN.db`: the stash is in the folder PREFIX. Or a URI.
            **options: As `CachedLM` takes; those given to `install` are the default.
        """
        self.cache_db = cache_db
        super().__init__(lm, stash_at(_RANK.sub("", cache_db)), **(_defaults | options))
        CachingLM.made.append(self)


CachingLM.made = []
_defaults: dict[str, Any] = {}
_open: dict[str, Stash] = {}
_lock = threading.Lock()
_theirs = lm_eval.api.model.CachingLM


def install(**options: Any) -> None:
    """Have the harness make our `CachingLM` wherever it would make its own.

    Args:
        **options: For each `CachingLM`, as `CachedLM` takes: `model=`, `revision=`, `variant=`, `imported=`, ...
    """
    _defaults.clear()
    _defaults.update(options)
    lm_eval.api.model.CachingLM = CachingLM


def uninstall() -> None:
    """Give the harness its own class back."""
    _defaults.clear()
    lm_eval.api.model.CachingLM = _theirs


def stash_at(place: str) -> Stash:
    """Return the stash in a folder or at a URI: the same one each time in one process."""
    name = place if "://" in place else str(Path(place).expanduser().absolute())
    with _lock:
        found = _open.get(name)
        if found is None:
            found = _open[name] = lmstash.open(name)
        return found


def close_all() -> None:
    """Close what `stash_at` has opened."""
    with _lock:
        stashes = list(_open.values())
        _open.clear()
    for each in stashes:
        each.close()


atexit.register(close_all)
