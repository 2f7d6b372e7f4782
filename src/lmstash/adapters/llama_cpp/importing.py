"""Takes over what llama-cpp-python's `LlamaDiskCache` has kept in a folder. The folder is only read.

Its entries say nothing of the model that computed them, so nothing is taken without one: the model that the owner
names computes a part of each entry again, and what is not equal is left out (see `checking`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmstash.adapters.llama_cpp.diskcache_folder import DiskcacheFolder, Row, open_folder
from lmstash.adapters.llama_cpp.pickled_state import MAX_STATE_BYTES, OldState, read_key, read_state
from lmstash.errors import CorruptEntryError, InvalidArgumentError, MissingDependencyError, StoreUnavailableError
from lmstash.events import logger


@dataclass(frozen=True)
class OldEntry:
    """One entry of a `LlamaDiskCache`."""

    where: str
    """Its row in `cache.db`, for messages."""
    key_tokens: tuple[int, ...]
    """Prompt and completion; the state lacks the last token, which was sampled and never evaluated."""
    state: OldState


@dataclass(frozen=True)
class Refused:
    """An entry that was not read."""

    where: str
    reason: str

    def __str__(self) -> str:
        """Return both in a line."""
        return f"{self.where}: {self.reason}"


def read_folder(
    path: str | os.PathLike[str], *, max_state_bytes: int = MAX_STATE_BYTES
) -> Iterator[OldEntry | Refused]:
    """Yield what the folder of a `LlamaDiskCache` holds, oldest first, one state in memory at a time.

    Nothing is unpickled; the folder may be in use, and is not changed. What an entry claims of itself is only checked
    against itself: no entry says which model computed it.

    Raises:
        NotFoundError: The folder holds no `cache.db`.
        CorruptEntryError: `cache.db` is damaged, or not one of diskcache 5.
        StoreUnavailableError: `cache.db` cannot be read, or never stayed the same while it was.
    """
    with open_folder(path) as folder:
        now = time.time()
        for row in folder.rows():
            where = f"entry {row.rowid}" + (f" ({row.filename})" if row.filename else "")
            try:
                yield _read_entry(folder, row, where, now, max_state_bytes)
            except (CorruptEntryError, StoreUnavailableError) as error:
                yield Refused(where, str(error))


def _read_entry(folder: DiskcacheFolder, row: Row, where: str, now: float, max_state_bytes: int) -> OldEntry:
    if row.expires is not None and row.expires < now:
        raise CorruptEntryError("it has expired")
    key = read_key(folder.key(row))
    with folder.value(row) as (file, n_bytes):
        state = read_state(file, n_bytes, max_state_bytes=max_state_bytes)
    shared = min(len(key), state.n_tokens)
    if shared == 0 or key[:shared] != tuple(state.input_ids[:shared].tolist()):
        raise CorruptEntryError("its key and its state are of different tokens")
    return OldEntry(where, key, state)


@dataclass
class ImportReport:
    """What `import_disk_cache` found and did."""

    folder: str
    model: str | None = None
    """Who was named as the one who computed it."""
    status: str = "unverified"
    """`unverified`: no model was named, nothing was taken. `verified`: taken is what the model computed again with
    equal results. `declared`: the owner's word was taken for it."""
    entries: int = 0
    """Found sound."""
    tokens: int = 0
    """In these."""
    nbytes: int = 0
    """Of their states."""
    taken: int = 0
    """Kept now."""
    written: int = 0
    """New blocks and bookkeeping in the stash; nothing when all was kept before."""
    problems: list[str] = field(default_factory=list)
    """One line for each entry that was left out, and why."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        """A short report for people."""
        lines = [f"{self.folder}: {self.entries:,} entries, {self.tokens:,} tokens, {self.nbytes:,} bytes of states"]
        if self.model is None:
            lines.append("  nothing was taken: name the model that computed them, with its settings")
        else:
            lines.append(
                f"  {self.model}: {self.taken:,} entries taken ({self.status}), {self.written:,} records written"
            )
        return "\n".join(lines + [f"  left out: {each}" for each in self.problems])


def import_disk_cache(
    folder: str | os.PathLike[str], stash: Any = None, *, llm: Any = None, verify: bool = True
) -> ImportReport:
    """Take the entries of a `LlamaDiskCache` of llama-cpp-python over into a stash, in shared blocks.

    Importing again adds what is new and changes nothing else. Costs reading every state once and, with a model and
    `verify`, evaluating up to 80 tokens for each different beginning and each different token among every eighth.

    Args:
        folder: The `cache_dir` of the old cache. Only read; it may be in use.
        stash: Where to: a stash, a store, or a cache of `lmstash.adapters.llama_cpp`.
        llm: The `Llama` that computed the entries, with the settings of that time; without it they are counted, and
            nothing is taken. What it has in its context stays. A plain `llama_cpp.Llama` is made one of lmstash's
            (see `bind`).
        verify: Take what the model computes again with equal results. False takes the owner's word for it, and what has
            the model's layout: wrong text comes out if it is another one's, or if images were among the prompts.

    Raises:
        InvalidArgumentError: A model without a place, or a place without a model.
        NotFoundError: The folder holds no `cache.db`.
        CorruptEntryError: `cache.db` is damaged, or not one of diskcache 5.
        StoreUnavailableError: `cache.db` cannot be read, or never stayed the same while it was.
        UnsupportedModelError: States of this model cannot be kept.
        MissingDependencyError: llama-cpp-python is not installed.
    """
    if (stash is None) != (llm is None):
        raise InvalidArgumentError("entries are taken with both: stash= says where to, llm= who computed them")
    report = ImportReport(str(Path(folder).expanduser()))
    take = None if llm is None else _Taker(report, stash, llm, verify=verify)
    try:
        for entry in read_folder(folder):
            if isinstance(entry, Refused):
                report.problems.append(str(entry))
                continue
            report.entries += 1
            report.tokens += entry.state.n_tokens
            report.nbytes += len(entry.state.llama_state)
            if take is not None:
                take(entry)
    finally:
        if take is not None:
            take.close()
    logger.info("read %d entries of %s, took %d", report.entries, report.folder, report.taken)
    return report


class _Taker:
    """Keeps entries under the identity of one model."""

    def __init__(self, report: ImportReport, stash: Any, llm: Any, *, verify: bool) -> None:
        try:
            from lmstash.adapters.llama_cpp.caches import LlamaStashCache, StoreCache
            from lmstash.adapters.llama_cpp.checking import Checker
            from lmstash.adapters.llama_cpp.llama import bind
        except ModuleNotFoundError as error:
            raise MissingDependencyError("llama-cpp-python", "llama") from error
        self.llm = bind(llm)
        self.cache = stash if isinstance(stash, StoreCache) else LlamaStashCache(stash)
        self.states = self.cache.states_of(self.llm)
        self.checker = Checker(self.llm, self.states.memory)
        self.verify = verify
        self.report = report
        report.model = str(self.states.fingerprint.recorded.get("name") or "a model without a name")
        report.status = "verified" if verify else "declared"
        self.before = self.llm.save_state() if self.llm.n_tokens else None

    def __call__(self, entry: OldEntry) -> None:
        report, ids, blob = self.report, entry.state.input_ids, entry.state.llama_state
        reason = self.checker.refusal(ids, blob, compute=self.verify)
        if reason is None:
            report.written += self.states.put(ids, blob, seconds_per_token=self.checker.seconds_per_token)
            if self.states.match(ids).n_tokens == len(ids):
                report.taken += 1
                return
            reason = "the stash had no room for it, or cannot be written"
        report.problems.append(f"{entry.where}: {reason}")

    def close(self) -> None:
        """Give the model back as it was."""
        self.llm.reset()
        if self.before is not None:
            self.llm.load_state(self.before)
