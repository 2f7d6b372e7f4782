"""Who answers during one call of the harness: results are kept as they come, and taken back if the model was changed.

Reading all weights before each batch is kept would cost more than a small batch. So within a call they are read so
often that it takes 0.2 % of the time, and once at its end; what was kept since they were last found unchanged is
deleted when they are not. What remains: a model that changes itself while it answers, in a process that is killed
before the next reading.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from typing import Any

from lmstash.adapters.lm_eval.under_way import Call, Calls
from lmstash.adapters.lm_eval.who.made_in_calls import MadeInCalls
from lmstash.adapters.lm_eval.who.remembered import Remembered
from lmstash.caches.responses.requests.asking import KIND, Asked
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
        self._calls = Calls()
        self._cost_seconds = 0.0

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
        call = self._calls.now
        return self._is_still(since) if call is None else call.good and call.model == since

    def begin(self, call: Call) -> None:
        """A call begins; it is under way till `end`, or till its `is_over` is set."""
        call.memos = self._remembered.begin()
        stale = [] if call.memos is None else call.memos.stale
        call.good = not stale
        if stale:
            self._store.events.warn_once("lm_eval memos", _STALE, ", ".join(stale), stale[0])
        if self._made is not None:
            self._made.begin(call)
        call.due = time.perf_counter() + self._cost_seconds / _SHARE
        self._calls.begin(call)

    def kept(self, call: Call, asked: Sequence[Asked]) -> None:
        """These answers were kept."""
        keys = [each.key for each in asked]
        with call.lock:
            if call.good:
                call.unsure += keys
                return
        self._take_back(keys)  # the model was found changed while they were written

    def check_if_due(self) -> None:
        """Look at the model if it is time to."""
        call = self._calls.now
        if call is not None and call.good and time.perf_counter() >= call.due:
            self._check(call)

    def end(self, call: Call) -> bool:
        """A call is over, and all its answers are kept; returns whether they were the model's."""
        if call.good:
            self._check(call)
        if call.memos is not None:
            call.memos.note()
        call.is_over = True
        return call.good

    def see_what_was_made(self, call: Call) -> None:
        """Look at what the last questions may have had the model make."""
        if call.may_make and self._made is not None:
            with contextlib.suppress(Exception):  # whatever other people's classes do when they are looked at
                self._made.before()

    def _check(self, call: Call) -> None:
        started = time.perf_counter()
        n_before = len(call.unsure)
        if self._is_still(call.model):
            with call.lock:
                del call.unsure[:n_before]
        else:
            with call.lock:
                call.good = False
                keys, call.unsure = call.unsure, []
            self._take_back(keys)
            self._store.events.warn_once(
                "lm_eval model changed",
                "lmstash: the model changed while it was evaluated%s; what it answered meanwhile is not kept%s",
                *self._what_changed(call.model),
            )
        now = time.perf_counter()
        self._cost_seconds = now - started
        call.due = now + self._cost_seconds / _SHARE

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
