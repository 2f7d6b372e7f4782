"""Noticing that a model in memory is no longer the one that was fingerprinted.

Three looks, from cheap to dear: plain attributes, hooks, code and numerics; version counters and addresses of the
tensors; the tensors' bytes, since an edit through `.data` moves no counter. Before new values are published, all bytes
are looked at. Where the kernel says which pages were written to (see `written_pages`), they are then so at every look,
at next to no cost. Elsewhere weights up to 1 GiB are read wholly before every call that serves hits, larger ones in
pieces drawn at random; those on a GPU always wholly. What remains: elsewhere an edit through `.data` to a few elements
of a model that takes more than 1 GiB on the CPU may go unseen until values are next published, and anywhere an edit
made while a call runs may be undone before the call ends.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from lmstash.errors import UnsupportedModelError
from lmstash.forks import renew_after_fork
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.identity.models.fingerprinting import Reading, read_model
from lmstash.identity.models.sighting import WHOLE_BYTES, Sighting, addresses_of, versions_of
from lmstash.interrupts import held_here

if TYPE_CHECKING:
    import torch

    from lmstash.identity.models.glance import Glance

_SHARE = 0.05
"""Of the time that `recognise` may spend on whole looks."""
_MOST_SETTINGS = 64
"""Remembered of a frozen model."""


class ModelWatch:
    """Keeps the fingerprint of a live model true. Threads may share it.

    Autocast counts and belongs to a thread: use what `refresh` returns to the calling thread.

    Args:
        model: The model; fingerprinted at once (about 0.4 s per GB).
        variant: As `fingerprint_model`.
        strict_numerics: As `fingerprint_model`.
        assume_frozen: The caller promises that the model never changes; nothing of it is read again. Autocast and the
            like, which are not the model's, are still looked at, and so is whether it was put into training mode.

    Raises:
        UnsupportedModelError: As `fingerprint_model`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        variant: str | None = None,
        strict_numerics: bool = False,
        assume_frozen: bool = False,
    ) -> None:
        self._model = model
        self._variant = variant
        self._strict_numerics = strict_numerics
        self._frozen = assume_frozen
        self._lock = threading.RLock()
        self._probing = threading.RLock()  # a probe is for one thread at a time
        self._suspect = False
        self.parts: tuple[int, ...] = ()
        """Which modules and tensors the model consisted of when it was last read, by `id`. Who holds parts of it, and
        finds others here later, may hold some that are no longer of it, equal as they were."""
        self._reading: Reading | None = None
        self._stamp: list[object] = []
        self._addresses: list[object] = []
        self._versions: list[object] = []
        self._glance: Glance | None = None
        self._due = 0.0
        """When the next whole look is due, by the monotonic clock."""
        self._devices: list[str] = []
        self._vouched: dict[str, Fingerprint] = {}
        """Of a frozen model, by the settings of a thread."""
        renew_after_fork(self, _lock=threading.RLock, _probing=threading.RLock)
        with self._lock:
            self._read()
            self._trains = model.training

    def watches(self, model: torch.nn.Module) -> bool:
        """Return whether this is the model."""
        return self._model is model

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint last taken; of a frozen model, the one under the settings of this thread."""
        reading = self._reading
        if reading is None:
            raise UnsupportedModelError("the model changed into one that cannot be cached. Call refresh() to see why.")
        return self._as_set(reading) if self._frozen else reading.fingerprint

    def runs_unknown_code(self) -> bool:
        """Return whether the model, as last read, runs code that nobody here knows and nobody has vouched for.

        That is code of yours, remote code, and layers of packages unknown here: what the configuration says of the
        model may not hold of them. A `variant` vouches, but not for what `in_passes` names.
        """
        if self.in_passes():
            return True
        reading = self._reading
        return self._variant is None and reading is not None and reading.structure.code.reads_all

    def in_passes(self) -> str:
        """Return what somebody has put into the passes of the model, as last read, or around them; empty for nothing.

        Hooks, a `forward` on an instance, a mode of torch's: only a `variant` lets them be. It names them, and does not
        say that a token's values depend on what precedes it and nothing else: people have hooks for the last token, for
        one position, for passes of one token.
        """
        from lmstash.identity.models.numerics import active_modes

        for mode in active_modes():
            return f"a {type(mode).__qualname__} is active"
        return "" if self._reading is None else self._reading.structure.in_passes

    def is_compiled(self) -> bool:
        """Return whether something of the model, as last read, runs as `torch.compile` made it."""
        return self._reading is not None and self._reading.structure.compiled

    def refresh(self) -> Fingerprint:
        """Look whether the model changed, and return who it is now. Call it before serving hits.

        Costs about 2 ms plus the weights' bytes at 500 GB/s where the kernel watches them, else at 17 GB/s (at most 1
        GiB of them); on a GPU it waits for the work in flight, then reads all of them at its memory's speed. After a
        change, the time of a new fingerprint of the tensors that changed.

        Raises:
            UnsupportedModelError: The model changed into one that cannot be cached safely.
        """
        self._forget_casts()
        if self._frozen:
            return self._vouched_for()
        with self._lock:
            if not self._holds(WHOLE_BYTES):
                self._read()
            return self.fingerprint

    def recognise(self) -> Fingerprint:
        """As `refresh`, for short calls: mostly by a `Glance`, wholly so often that it takes 5 % of the time.

        Costs 0.1 ms for 400 modules, 0.6 from Python 3.13 on. What it may not see until the next whole look (for
        weights of half a gigabyte at most a second away, 0.2 where the kernel watches them) is a change of a few
        elements through `.data`, of code, and what `Glance` names. So nothing that was computed since may be published
        before `unchanged`.

        Raises:
            UnsupportedModelError: As `refresh`.
        """
        self._forget_casts()
        if self._frozen:
            return self._vouched_for()
        with self._lock:
            glance = self._glance
            if glance is not None and time.monotonic() < self._due and glance.holds():
                return self.fingerprint
            started, before = time.monotonic(), self._reading
            self._glance = None  # until all is compared, whatever comes between
            glance = self._next_glance(glance)
            fingerprint = self.refresh()
            if self._reading is before and glance is not None and glance.holds():  # so it is of what was read
                self._glance = glance
            now = time.monotonic()
            self._due = now + (now - started) / _SHARE
            return fingerprint

    def look(self) -> Sighting:
        """As `refresh`, but weights in the CPU's memory are left to `Sighting.holds`, so that computing may begin.

        Nothing that was served on the strength of it may leave before that said yes. Costs about 2 ms for a model of
        400 modules; weights on a GPU are read at once.

        Raises:
            UnsupportedModelError: As `refresh`.
        """
        self._forget_casts()
        if self._frozen:
            return Sighting(self, self._model, self._vouched_for(), None, [], [])
        with self._lock:
            budget_bytes = None if self._suspect else 0
            self._suspect = False
            if not self._holds(budget_bytes):
                self._read()
            return Sighting(self, self._model, self.fingerprint, self._reading, self._stamp, self._addresses)

    def suspect(self) -> None:
        """Have the next `look` read every weight: a sighting proved wrong."""
        self._suspect = True

    def holding(self, reading: Reading, budget_bytes: int | None) -> bool:
        """Return whether the tensors of a reading have the bytes they had; reads in this thread alone."""
        if self._is_probing():
            return False
        with self._probing:
            held = reading.probe.holds(budget_bytes, n_threads=1)
        if not held:
            self.suspect()
        return held

    def reads_as(self, reading: Reading, fingerprint: Fingerprint) -> bool:
        """Return whether the model, read anew, is the one of a fingerprint, whatever the settings of this thread.

        Costs a fingerprint of the tensors that are not as in a reading of before, and waits for nobody. Does not raise.
        """
        try:
            found = read_model(
                self._model, variant=self._variant, strict_numerics=self._strict_numerics, known=reading.known
            ).fingerprint
        except UnsupportedModelError:
            return False
        return Key(found.components | {"numerics": fingerprint.components["numerics"]}) == Key(fingerprint.components)

    def unchanged(self, since: Fingerprint | None = None) -> bool:
        """Return whether the model is still the one of `since` (default: of the last `refresh`), reading everything.

        Call it before publishing values computed since then. Under `assume_frozen` it is, under whatever settings,
        unless it was put into training mode. Costs as `refresh`, with all of the weights' bytes. Does not raise.
        """
        if self._frozen:
            known = [None, *self._vouched.values()]  # at once: other threads may add to them
            return self._model.training == self._trains and since in known
        with self._lock:
            reading = self._reading
            if reading is None:
                return False
            since = since or reading.fingerprint
            if self._holds(None):
                return reading.fingerprint == since
            try:
                self._read()
            except UnsupportedModelError:
                return False
            return self.fingerprint == since

    def changes(self, since: Fingerprint) -> list[str]:
        """Return the names of what is no longer as it was, by the last reading: call it when `unchanged` said no.

        As `Fingerprint.explain` has them; what is wrong, where the model became one that cannot be cached.
        """
        try:
            return [each.name for each in since.explain(self.refresh())]
        except UnsupportedModelError as error:
            return [str(error)]

    def _forget_casts(self) -> None:
        """Have weights cast anew: torch keeps what autocast has cast, even if they change; a model may have its own."""
        import torch

        torch.clear_autocast_cache()

    def _vouched_for(self) -> Fingerprint:
        """Return who a frozen model is under the settings of this thread, which nobody vouches for. Costs 8 us."""
        reading = self._reading
        if reading is None or self._model.training != self._trains:
            raise UnsupportedModelError(
                f"the model was put into {'training' if self._model.training else 'evaluation'} mode, and "
                "assume_frozen=True promised that it stays as it was. Put it back, or make the cache anew."
            )
        return self._as_set(reading)

    def _as_set(self, reading: Reading) -> Fingerprint:
        from lmstash.identity.models.numerics import numerics, refuse_modes
        from lmstash.identity.models.structure import settings_component

        if self._variant is None:
            refuse_modes()
        settings = numerics(self._devices)
        name = repr(settings)
        found = self._vouched.get(name)
        if found is None:
            found = reading.fingerprint
            components, now = found.components, settings_component(settings)
            if components["numerics"] != now:
                found = Fingerprint(Key(components | {"numerics": now}), found.recorded)
            if len(self._vouched) >= _MOST_SETTINGS:
                self._vouched.clear()
            self._vouched[name] = found
        return found

    def _next_glance(self, last: Glance | None) -> Glance | None:
        """Return a glance at the model as it is: the last one with other words of the weights, or a new one."""
        from lmstash.identity.models.glance import Glance

        code = None if self._reading is None else self._reading.structure.code
        try:
            if last is not None and last.holds():
                last.draw()
                return last
            return Glance(self._model, {} if code is None else code.objects, code)
        except Exception:  # what a model bears may refuse to be looked at: then it is described each time
            return None

    def _holds(self, budget_bytes: int | None) -> bool:
        """Return whether the last reading still stands; tensors are read up to a budget."""
        from lmstash.identity.models.structure import stamp

        if self._reading is None:
            return False
        code = self._reading.structure.code
        try:
            found, live = stamp(self._model, code)
        except UnsupportedModelError:  # which is said when it is read
            return False
        if found != self._stamp or addresses_of(live) != self._addresses or not code.unchanged():
            return False
        versions = versions_of(live)
        if versions != self._versions:
            budget_bytes = None
        if budget_bytes != 0 or self._reading.probe.on_devices:  # else another thread's look would be waited for
            if self._is_probing():
                return False
            with self._probing:
                if not self._reading.probe.holds(budget_bytes):
                    return False
        self._versions = versions
        return True

    def is_interrupted(self) -> bool:
        """Whether this thread is looking at the model, so that who asks is a signal handler or finalizer come between.

        Another thread, which may want to look too, must not be waited for then.
        """
        return self._is_probing() or held_here(self._lock)

    def _is_probing(self) -> bool:
        """Whether a signal handler asks in the midst of a probe of its own thread: then no answer is right."""
        return held_here(self._probing)

    def _read(self) -> None:
        """Take a new reading, and everything that it is later compared with: together, whoever else reads meanwhile."""
        from lmstash.identity.models.numerics import device_types
        from lmstash.identity.models.structure import stamp

        known = self._reading.known if self._reading else {}
        self._reading = self._glance = None
        for _ in range(3):
            before, live = stamp(self._model)
            addresses, versions = addresses_of(live), versions_of(live)
            reading = read_model(self._model, variant=self._variant, strict_numerics=self._strict_numerics, known=known)
            after, live = stamp(self._model)
            if after == before and addresses_of(live) == addresses:
                code = reading.structure.code
                found, live = stamp(self._model, code)
                if code.objects:
                    addresses, versions = addresses_of(live), versions_of(live)
                self.parts = (*map(id, self._model.modules()), *map(id, live))
                self._devices = device_types(reading.structure.tensors.values())
                self._stamp, self._addresses, self._versions, self._reading = found, addresses, versions, reading
                return
        raise UnsupportedModelError("the model changes while it is read. Let it come to rest, then retry.")


_watches: WeakValueDictionary[tuple[int, str | None, bool], ModelWatch] = WeakValueDictionary()
"""By the model's `id`, which is its own for as long as its watch lives."""


def watch_model(
    model: torch.nn.Module,
    *,
    variant: str | None = None,
    strict_numerics: bool = False,
    assume_frozen: bool = False,
) -> ModelWatch:
    """Return a watch of `model`: the one that another cache of this process has, if there is one, looked over wholly.

    So that each further cache of a model costs its bytes at 17 GB/s instead of a new fingerprint. Whoever vouches for a
    frozen model does so from now on, and gets a watch of their own.

    Takes what `ModelWatch` takes.

    Raises:
        UnsupportedModelError: As `ModelWatch`.
    """
    if assume_frozen:
        return ModelWatch(model, variant=variant, strict_numerics=strict_numerics, assume_frozen=True)
    name = id(model), variant, bool(strict_numerics)
    found = _watches.get(name)
    if found is None or not found.watches(model):
        found = _watches[name] = ModelWatch(model, variant=variant, strict_numerics=strict_numerics)
    elif not found.unchanged():
        found.refresh()
    return found
