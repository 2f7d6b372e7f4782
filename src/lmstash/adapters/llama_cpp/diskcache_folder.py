"""Reads a folder of diskcache 5 (the package that `LlamaDiskCache` keeps its entries in) without diskcache.

`cache.db` is an SQLite database whose table `Cache` has a row for each entry: a pickled key, and a pickled value in the
row if it is small, else the name of a file like `ab/cd/<28 hex digits>.val`. The database is read from a copy (see
`sqlite_aside`) that is distrusted: no view, trigger, virtual table or generated column of it is run. Value files are
opened where they are, which follows no link. Nothing is unpickled here.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lmstash.adapters.llama_cpp.sqlite_aside import copy_aside, open_regular
from lmstash.codecs.foreign_pickle import Seekable
from lmstash.errors import CorruptEntryError, NotFoundError, StoreUnavailableError

if TYPE_CHECKING:
    import apsw

MAX_KEY_BYTES: Final = 64 << 20
_PICKLED = 4
"""`mode` of a row whose value is pickled."""
_COLUMNS = {"rowid", "key", "raw", "expire_time", "mode", "filename", "value"}
_ROWS = """
    SELECT rowid,
           CASE typeof(key) WHEN 'blob' THEN length(key) END,
           CAST(raw AS INTEGER),
           CAST(expire_time AS REAL),
           CAST(mode AS INTEGER),
           CASE WHEN filename IS NOT NULL THEN CAST(substr(filename, 1, 100) AS BLOB) END,
           CASE typeof(value) WHEN 'blob' THEN length(value) END
    FROM Cache NOT INDEXED ORDER BY rowid
"""
_VALUE_FILE = re.compile(r"([0-9a-f]{2})[/\\]([0-9a-f]{2})[/\\]([0-9a-f]{28}\.val)")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Row(NamedTuple):
    """One entry, without its key and value."""

    rowid: int
    n_key_bytes: int | None
    """None if its key is no blob."""
    pickled_key: bool
    expires: float | None
    """Seconds since 1970."""
    pickled_value: bool
    filename: str | None
    n_value_bytes: int | None
    """In the row; None if its value is no blob."""


class DiskcacheFolder:
    """An open folder; see `open_folder`. For one thread."""

    def __init__(self, folder: Path, connection: apsw.Connection) -> None:
        self._folder = folder
        self._connection = connection

    def rows(self) -> Iterator[Row]:
        """Yield the rows, oldest first.

        Raises:
            CorruptEntryError: The database is damaged.
        """
        with _Reading(self._folder):
            found = list(self._connection.execute(_ROWS))
        for rowid, n_key_bytes, raw, expires, mode, filename, n_value_bytes in found:
            name = None if filename is None else filename.decode("ascii", "replace")
            yield Row(rowid, n_key_bytes, raw == 0, expires, mode == _PICKLED, name, n_value_bytes)

    def key(self, row: Row) -> bytes:
        """Return the pickled key of `row`.

        Raises:
            CorruptEntryError: It has none, or one too large to be of use.
        """
        if row.n_key_bytes is None or not row.pickled_key:
            raise CorruptEntryError("its key is not pickled")
        if row.n_key_bytes > MAX_KEY_BYTES:
            raise CorruptEntryError(f"its key has {row.n_key_bytes:,} bytes")
        with _Reading(self._folder), closing(self._blob("key", row)) as blob:
            return blob.read()

    @contextmanager
    def value(self, row: Row) -> Iterator[tuple[Seekable, int]]:
        """Open the pickled value of `row`; give it with its size in bytes.

        Raises:
            CorruptEntryError: It has none, or its file is not where diskcache puts them.
            StoreUnavailableError: Its file is gone, or may not be read.
        """
        if not row.pickled_value:
            raise CorruptEntryError("its value is not pickled")
        if row.filename is not None:
            with self._value_file(row.filename) as opened:
                yield opened
        elif row.n_value_bytes is not None:
            with _Reading(self._folder), closing(self._blob("value", row)) as blob:
                yield blob, row.n_value_bytes
        else:
            raise CorruptEntryError("it has no value")

    def _blob(self, column: str, row: Row) -> apsw.Blob:
        return self._connection.blob_open("main", "Cache", column, row.rowid, False)

    @contextmanager
    def _value_file(self, filename: str) -> Iterator[tuple[Seekable, int]]:
        parts = _VALUE_FILE.fullmatch(filename)
        if parts is None:
            raise CorruptEntryError("its value lies under a name that diskcache does not give")
        first, second, name = parts.groups()
        try:
            descriptor = _open_below(self._folder, (first, second), name)
        except OSError as error:
            raise StoreUnavailableError(f"its file {filename} cannot be opened: {error.strerror}") from error
        with open(descriptor, "rb") as file:
            try:
                yield file, os.fstat(descriptor).st_size
            except OSError as error:
                raise StoreUnavailableError(f"its file {filename} cannot be read: {error.strerror}") from error


@contextmanager
def open_folder(path: str | os.PathLike[str]) -> Iterator[DiskcacheFolder]:
    """Open a folder for reading. It may be in use: nothing in it is locked, changed or made.

    Cost: copies `cache.db` to the folder for temporary files, and checks the copy.

    Raises:
        NotFoundError: There is no `cache.db`.
        CorruptEntryError: `cache.db` is damaged, or not one of diskcache 5.
        StoreUnavailableError: It cannot be read, or never stayed the same while it was.
    """
    folder = Path(path).expanduser()
    if not os.path.lexists(folder / "cache.db"):
        raise NotFoundError(f"{folder} holds no cache.db. Name the folder that LlamaDiskCache was given as cache_dir.")
    with tempfile.TemporaryDirectory(prefix="lmstash-import-") as aside:
        connection = _open_copy(copy_aside(folder / "cache.db", Path(aside)), folder)
        try:
            yield DiskcacheFolder(folder, connection)
        finally:
            connection.close()


def _open_copy(copy: Path, folder: Path) -> apsw.Connection:
    import apsw

    with _Reading(folder):
        connection = apsw.Connection(str(copy), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
            connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
            for pragma in ("cell_size_check = 1", "ignore_check_constraints = 1", "mmap_size = 0"):
                connection.execute(f"PRAGMA {pragma}")
            kinds = list(connection.execute("SELECT type, sql FROM sqlite_schema WHERE lower(name) = 'cache'"))
            if len(kinds) != 1 or kinds[0][0] != "table" or not str(kinds[0][1]).upper().startswith("CREATE TABLE"):
                raise CorruptEntryError(f"{folder}/cache.db has no table Cache: it is not of diskcache 5")
            columns = {name: hidden for _, name, _, _, _, _, hidden in connection.execute("PRAGMA table_xinfo(Cache)")}
            if not columns.keys() >= _COLUMNS or any(columns.values()):
                raise CorruptEntryError(f"{folder}/cache.db has other columns than diskcache 5 makes")
            # Finds pages that are used twice, which could make a small file hold rows without end.
            if (found := connection.execute("PRAGMA quick_check('Cache')").fetchone()) != ("ok",):
                raise CorruptEntryError(f"{folder}/cache.db is damaged: {found}")
        except BaseException:
            connection.close()
            raise
        return connection


class _Reading:
    """Turns SQLite's errors into ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import apsw

        if isinstance(error, (apsw.CantOpenError, apsw.IOError, apsw.FullError)):
            raise StoreUnavailableError(f"the copy of {self.folder}/cache.db cannot be used: {error}") from error
        if isinstance(error, (apsw.Error, UnicodeDecodeError)):
            raise CorruptEntryError(f"{self.folder}/cache.db is damaged: {error}") from error


def _open_below(folder: Path, parents: tuple[str, ...], name: str) -> int:
    """Open a file some folders below `folder`, following no link on the way."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent in parents:
            deeper = os.open(parent, _FOLDER, dir_fd=at)
            os.close(at)
            at = deeper
        return open_regular(name, dir_fd=at)
    finally:
        with suppress(OSError):
            os.close(at)
