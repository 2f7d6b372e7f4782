"""`StoreContract`: what every store promises, as tests."""

from __future__ import annotations

from lmstash.testing.faults import FaultsContract
from lmstash.testing.keeping import KeepingContract
from lmstash.testing.looking import LookingContract
from lmstash.testing.sheets import SheetsContract
from lmstash.testing.values import ValuesContract


class StoreContract(ValuesContract, SheetsContract, KeepingContract, LookingContract, FaultsContract):
    """Subclass it, name the subclass `Test...`, and give it a pytest fixture `open_store`.

    `open_store(capacity_bytes=None, *, strict=False, events=None)` opens a store at one place of the test's own:
    called again, it opens that place anew if the store is `persistent`, else it makes another empty store. The limit
    None is unlimited; `events` is the `EventLog` to count in, a fresh one by default. Close what you open in the
    fixture's teardown if it holds anything.

    Attributes:
        persistent: What is kept is there again when the place is opened anew, pins included.
        bounded: `capacity_bytes` is a limit that holds.
        pinning: Pins protect from eviction.
        notes_each_use: Every single read is seen in `EntryInfo.hits` (else at least the first).
        room_bytes: A limit under which some 40 values of 64 KiB fit, and 400 do not.
    """
