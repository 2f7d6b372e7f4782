"""Files of segments that the index no longer knows: each takes its room, which is granted to nobody, until it is gone.

A removal is committed before its file is unlinked. Whoever is stopped or killed between the two leaves a file, and a
fact that names it, by which every process counts what the file takes; `Recovery.tend` ends what was begun.
"""

from __future__ import annotations

from collections.abc import Iterable

from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.rows import SegmentRow
from lmstash.store.disk.indexing.index import Index

_FACT = "doomed "
_ALL = f"SELECT name FROM facts WHERE name BETWEEN '{_FACT}' AND '{_FACT}~'"


def doom(index: Index, segment: SegmentRow) -> None:
    """Remove a segment from the index, whose file is unlinked once that is committed. Inside a transaction."""
    index.writer.execute("DELETE FROM segments WHERE id = ?", (segment.id,))
    index.set_fact(_FACT + segment.name, 0)


def doomed_bytes(index: Index, folder: Folder) -> int:
    """Return what files that are to go still take. Inside a transaction."""
    return sum(map(folder.blocks, _names(index)))


def forget_gone(index: Index, there: Iterable[str]) -> None:
    """Forget the doomed files that are not among those still `there`. Inside a transaction."""
    gone = _names(index).difference(there)
    if gone:
        index.writer.executemany("DELETE FROM facts WHERE name = ?", [(_FACT + name,) for name in gone])


def _names(index: Index) -> set[str]:
    return {name.removeprefix(_FACT) for (name,) in index.writer.execute(_ALL)}
