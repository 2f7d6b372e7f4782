"""For people who write their own store: the promises of the protocol as tests, and a store that fails on purpose.

A store keeps the protocol of `lmstash.store.base` when it passes `StoreContract`::

    from lmstash.testing import StoreContract

    class TestMyStore(StoreContract):
        persistent = True

        @pytest.fixture
        def open_store(self, tmp_path):
            def open_store(capacity_bytes=None, *, strict=False, events=None):
                return MyStore(tmp_path / "kept", capacity_bytes, strict=strict, events=events)

            return open_store

Importing this package imports neither pytest nor any store; the names are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmstash.testing.contract import StoreContract
    from lmstash.testing.faulty import FaultyStore
    from lmstash.testing.samples import sample_bytes, sample_key

__all__ = ["FaultyStore", "StoreContract", "sample_bytes", "sample_key"]

_HOMES = {"StoreContract": "contract", "FaultyStore": "faulty", "sample_bytes": "samples", "sample_key": "samples"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
