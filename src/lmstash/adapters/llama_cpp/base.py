"""`BaseLlamaCache`: the base of every cache here and of people's own, whose faults never reach a completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from llama_cpp.llama import LlamaState as _LlamaState
from llama_cpp.llama_cache import BaseLlamaCache as _BaseLlamaCache

from lmstash.events import DropReason, EventLog, MissReason

DEFAULT_BYTES = 2 << 30


class BaseLlamaCache(_BaseLlamaCache):
    """Base of every cache here, and of caches of your own.

    It is always true (llama-cpp-python asks `if cache:`), and nothing that a subclass does wrong reaches a completion:
    a look-up that raises or returns something else than a `LlamaState` is a counted miss (KeyError), a store that
    raises is a counted drop.

    Attributes:
        capacity_bytes: Limit, as given.
    """

    capacity_bytes: int = DEFAULT_BYTES

    def __init__(self, capacity_bytes: int = DEFAULT_BYTES) -> None:
        """Make an empty cache."""
        self.capacity_bytes = capacity_bytes

    def __init_subclass__(cls, **named: Any) -> None:
        """Guard the methods that llama-cpp-python calls."""
        super().__init_subclass__(**named)
        for name, guard in _GUARDS.items():
            if name in cls.__dict__:
                setattr(cls, name, guard(cls.__dict__[name]))

    @property
    def events(self) -> EventLog:
        """Counts what happens; subclasses that never call this class's `__init__` have one too."""
        own: EventLog | None = getattr(self, "_events", None)
        if own is None:
            own = self._events = EventLog()
        return own

    @property
    def strict(self) -> bool:
        """Whether faults are raised instead of counted."""
        return False

    @property
    def cache_size(self) -> int:
        """Bytes that are kept, bookkeeping included."""
        return 0

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Sequence[int]) -> Any:
        """Return the state of the longest kept prefix of `key`.

        Raises:
            KeyError: Nothing of it is kept.
        """
        raise KeyError("Key not found")

    def __contains__(self, key: object) -> bool:
        return False

    def __setitem__(self, key: Sequence[int], value: Any) -> None:
        """Keep a state."""

    def __len__(self) -> int:
        return 0


def _guard_get(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @wraps(method)
    def get(self: Any, key: Any) -> Any:
        try:
            value = method(self, key)
        except KeyError:
            raise
        except Exception as error:
            if self.strict:
                raise
            _fault(self, "a look-up", error)
            raise KeyError("Key not found") from error
        if not isinstance(value, _LlamaState):
            if value is not None:
                _fault(self, "a look-up", TypeError(f"it gave a {type(value).__name__}, not a LlamaState"))
            else:
                self.events.miss("states/own", b"", MissReason.ABSENT)
            raise KeyError("Key not found")
        return value

    return get


def _guard_contains(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    @wraps(method)
    def contains(self: Any, key: Any) -> bool:
        try:
            return bool(method(self, key))
        except Exception as error:
            if self.strict:
                raise
            _fault(self, "a look-up", error)
            return False

    return contains


def _guard_set(method: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], None]:
    @wraps(method)
    def put(self: Any, key: Any, value: Any) -> None:
        try:
            method(self, key, value)
        except Exception as error:
            if self.strict:
                raise
            self.events.drop("states/own", b"", DropReason.UNAVAILABLE)
            _say(self, "a store", error)

    return put


def _fault(cache: BaseLlamaCache, what: str, error: Exception) -> None:
    cache.events.miss("states/own", b"", MissReason.UNAVAILABLE)
    _say(cache, what, error)


def _say(cache: BaseLlamaCache, what: str, error: Exception) -> None:
    name = type(cache).__name__
    cache.events.warn_once(f"{name} {what} {type(error)}", "lmstash: %s of %s failed: %r", what, name, error)


_GUARDS: dict[str, Callable[..., Any]] = {
    "__getitem__": _guard_get,
    "__contains__": _guard_contains,
    "__setitem__": _guard_set,
}
