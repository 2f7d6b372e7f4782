"""Who answers during one call of the harness: results are kept as they come, and taken back if the model was changed.

Reading all weights before each batch is kept would cost more than a small batch. So within a call they are read so
often that it takes 0.2 % of the time, and once at its end; what was kept since they were last found unchanged is
deleted when they are not. What remains: a model that changes itself while it answers, in a process that is killed
before the next reading.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from lmstash.adapters.lm_eval.made_in_calls import MadeInCalls
from lmstash.adapters.lm_eval.remembered import Remembered
from lmstash.caches.responses.asking import KIND, Asked
from lmstash.caches.responses.who import Who
from lmstash.errors import UnsupportedModelError
from lmstash.events import DropReason
from lmstash.identity.fingerprint import Fingerprint
from lmstash.store.base import Store

_SHARE = 0.002
"""Of the time that looking within a call may take."""
_OF_ATTRIBUTES = frozenset({"settings", "files"})
"""Parts of what a model is that are told by attribute."""
_NAMED_FILE = re.compile(r"files\.text:(.*?)(?:\[.*|\.\d+)*", re.DOTALL)
_OBJECT = re.compile(r"[^:]+:\w+")
"""What code names, as `identity.code` calls it."""

_STALE = (
    "lmstash: %s, which the model's code names, remembers results (functools.lru_cache) from before something changed "
    "that they hang on; what it answers is not kept: call %s.cache_clear(), or start anew"
)


class Vouched:
    """A `Who` that is trusted within a call. The call's thread looks; any thread may keep."""

    def __init__(self, who: Who, store: Store, lm: Any) -> None:
        """Take who answers, where answers are kept, and the harness's model."""
        self._who = who
        self._remembered = Remembered(lm)
        self._made: MadeInCalls | None = getattr(who, "made", None)
        self._store = store
        self._lock = threading.Lock()
        self._model: Fingerprint | None = None
        self._good = True
        self._unsure: list[bytes] = []
        self._cost_seconds = 0.0
        self._due = 0.0

    def look(self) -> Fingerprint:
        """Return who would answer now."""
        started = time.perf_counter()
        try:
            model = self._who.look()
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever other people's classes do when they are looked at
            raise UnsupportedModelError(f"it cannot be looked into: {error!r}") from error
        self._cost_seconds = time.perf_counter() - started
        return model

    def unchanged(self, since: Fingerprint) -> bool:
        """Within a call, whether nothing else was seen so far; else as the model itself says."""
        return self._good and self._model == since if self._model is not None else self._is_still(since)

    def begin(self, model: Fingerprint) -> None:
        """A call to this model begins."""
        stale = self._remembered.begin()
        self._model, self._good, self._unsure = model, not stale, []
        if stale:
            self._store.events.warn_once("lm_eval memos", _STALE, ", ".join(stale), stale[0])
        if self._made is not None:
            self._made.begin(model)
        self._due = time.perf_counter() + self._cost_seconds / _SHARE

    def kept(self, asked: Sequence[Asked]) -> None:
        """These answers were kept."""
        keys = [each.key for each in asked]
        with self._lock:
            if self._good:
                self._unsure += keys
                return
        self._take_back(keys)  # the model was found changed while they were written

    def check_if_due(self) -> None:
        """Look at the model if it is time to."""
        if self._model is not None and self._good and time.perf_counter() >= self._due:
            self._check()

    def end(self) -> bool:
        """The call is over, and all its answers are kept; returns whether they were the model's."""
        if self._model is None:
            return True
        if self._good:
            self._check()
        self._remembered.end()
        good, self._model = self._good, None
        if self._made is not None:
            self._made.end()
        return good

    @property
    def wants_one_first(self) -> bool:
        """Whether the model may make something for its first question, so that it is to be seen before the others."""
        return self._model is not None and self._made is not None and self._made.expects

    def see_what_was_made(self) -> None:
        """Look at what the last questions may have had the model make."""
        if self.wants_one_first and self._made is not None:
            with contextlib.suppress(Exception):  # whatever other people's classes do when they are looked at
                self._made.before()

    def _check(self) -> None:
        assert self._model is not None
        started = time.perf_counter()
        with self._lock:
            keys, self._unsure = self._unsure, []
        if not self._is_still(self._model):
            with self._lock:
                self._good = False
                keys, self._unsure = keys + self._unsure, []
            self._take_back(keys)
            self._store.events.warn_once(
                "lm_eval model changed",
                "lmstash: the model changed while it was evaluated%s; what it answered meanwhile is not kept%s",
                *self._what_changed(self._model),
            )
        now = time.perf_counter()
        self._cost_seconds = now - started
        self._due = now + self._cost_seconds / _SHARE

    def _is_still(self, model: Fingerprint) -> bool:
        try:
            return self._who.unchanged(model)
        except Exception:  # whatever other people's classes do when they are looked at
            return False

    def _what_changed(self, model: Fingerprint) -> tuple[str, str]:
        """Return what is another one now, in brackets, and what may be done about attributes that change no answer."""
        try:
            names = [each.name for each in model.explain(self._who.look())]
        except Exception:
            return "", ""
        files = sorted({found[1] for name in names if (found := _NAMED_FILE.fullmatch(name))})
        kinds = [name.split(".", 1) for name in names if not _NAMED_FILE.fullmatch(name)]
        attributes = sorted({name[1].partition(".")[0] for name in kinds if name[0] in _OF_ATTRIBUTES and name[1:]})
        others = {name[0] for name in kinds if not (name[0] in _OF_ATTRIBUTES and name[1:])}
        objects = sorted(
            {found[0] for name in kinds if name[0] == "code" and (found := _OBJECT.match("".join(name[1:])))}
        )
        said = ", ".join(
            [
                *(f"its attribute {each} or what this names" for each in attributes),
                *(f"the file {each} that its code names" for each in files),
                *sorted(others - {"code"} if objects else others),
                *(f"what its code names: {each}" for each in objects),
            ]
        )
        named = [*attributes, *files]
        advice = f". Of what changes no answer, say so: CachedLM(harmless={named})" if named else ""
        if objects:
            advice += ". A global that changes no answer may be an attribute instead, named in CachedLM(harmless=[...])"
        return f" ({said})" if said else "", advice

    def _take_back(self, keys: list[bytes]) -> None:
        self._store.delete_many(keys)
        for key in keys:
            self._store.events.drop(KIND, key, DropReason.MODEL_CHANGED)
