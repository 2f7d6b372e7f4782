"""What can go wrong, grouped by what a caller would do about it.

::

    LmstashError
    ├── InvalidArgumentError   (also ValueError)   the call is wrong: mend the call
    ├── NotFoundError          (also KeyError)     asked for by name and not kept
    ├── StoreError
    │   ├── StoreUnavailableError                  no permission, no folder, a server that does not answer
    │   ├── CapacityError                          no room: the disk is full, or the value exceeds the limit
    │   └── ReadOnlyError                          a write to a store that was opened for reading
    ├── FormatError
    │   ├── CorruptEntryError                      bytes that fail their checksum
    │   └── UnsupportedFormatError                 written by a newer lmstash
    ├── MismatchError                              the kept value does not fit the live model, or the model changed
    ├── InterruptedChangeError                     asked by a signal handler in the midst of a change of its own thread
    ├── UnsupportedModelError                      a model or setting whose results cannot be cached safely
    └── MissingDependencyError (also ImportError)  an extra is not installed; the message has the pip line

Reads and fills do not raise these by default: a fault is a counted miss (see `lmstash.events`). `strict=True` raises.
Messages say what failed, on what, and what to do next.
"""

from __future__ import annotations


class LmstashError(Exception):
    """Base of every error that lmstash raises on purpose."""


class InvalidArgumentError(LmstashError, ValueError):
    """The call cannot be honoured as written."""


class NotFoundError(LmstashError, KeyError):
    """Something asked for by name is not kept."""

    def __str__(self) -> str:
        """Return the message as written (KeyError would quote it)."""
        return Exception.__str__(self)


class StoreError(LmstashError):
    """A store could not do what was asked."""


class StoreUnavailableError(StoreError):
    """The folder or server cannot be used at all."""


class CapacityError(StoreError):
    """There is no room for the value."""


class ReadOnlyError(StoreError):
    """A write reached a store that was opened for reading."""


class FormatError(LmstashError):
    """Stored bytes cannot be read."""


class CorruptEntryError(FormatError):
    """Stored bytes fail their checksum or contradict their header."""


class UnsupportedFormatError(FormatError):
    """Stored bytes were written by a version this one does not know."""


class MismatchError(LmstashError):
    """A kept value does not fit the live model, or the model changed while it was used."""


class InterruptedChangeError(LmstashError):
    """What is asked for is half changed by the very code that was interrupted to ask: let that return first."""


class UnsupportedModelError(LmstashError):
    """The model, as it is now, cannot be cached safely."""


class MissingDependencyError(LmstashError, ImportError):
    """A package that this feature needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Build the message from the missing `package` and the lmstash `extra` that brings it."""
        super().__init__(f"{package} is not installed. Run: pip install 'lmstash[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str]]:
        """Pickle by the two arguments, not by the message."""
        return type(self), (self.package, self.extra)
