"""Takes over the databases of the harness's own `CachingLM`, without unpickling anything.

Such a database (sqlitedict: table `unnamed`, `key` text, `value` a pickle) says neither which model answered nor what
was asked: its keys are digests of the method and its arguments. The owner declares the model; the digests are kept as
they are, and looked up by whoever evaluates a model of that name.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lmstash.adapters.llama_cpp.sqlite_aside import copy_aside
from lmstash.adapters.lm_eval.imported import ImportedAnswers
from lmstash.codecs.foreign_pickle import follow
from lmstash.errors import CorruptEntryError, InvalidArgumentError

if TYPE_CHECKING:
    from lmstash.stash import Stash

MAX_VALUE_BYTES: Final = 2**26
_BATCH = 1024
_MOST_PROBLEMS = 20


@dataclass(slots=True)
class Report:
    """What became of the rows of a database."""

    file: str
    model: str
    entries: int = 0
    taken: int = 0
    known: int = 0
    """There already."""
    empty: int = 0
    """Nothing, or an empty text, which the harness keeps of a server that failed, too."""
    refused: int = 0
    """Not what the harness writes."""
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        """Return it for people."""
        parts = [f"{self.file}: {self.entries:,} answers, {self.taken:,} taken over as answers of {self.model!r}"]
        for number, what in ((self.known, "there already"), (self.empty, "empty"), (self.refused, "refused")):
            if number:
                parts.append(f"{number:,} {what}")
        return "\n  ".join([", ".join(parts), *self.problems])


def import_caching_db(file: str | Path, stash: Stash, *, model: str) -> Report:
    """Take over a database of the harness's `CachingLM`; it is only read, and may be in use.

    Args:
        file: The database, `PREFIX_rankN.db`.
        stash: Where the answers are kept.
        model: The name that you declare for the model that gave them: what `CachedLM(..., imported=NAME)` asks for.

    Raises:
        InvalidArgumentError: It is no such database, or no name is given.
        StoreUnavailableError: It cannot be read.
    """
    import apsw

    if not model:
        raise InvalidArgumentError("say which model gave these answers: the database does not. --model NAME")
    path = Path(file)
    report = Report(str(file), model)
    answers = ImportedAnswers(stash, model)
    with tempfile.TemporaryDirectory(prefix="lmstash-") as folder:
        copy = copy_aside(path, Path(folder))
        try:
            connection = apsw.Connection(str(copy))
            connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
            try:
                batch: dict[bytes, Any] = {}
                for digest, value in _rows(connection, report):
                    batch[digest] = value
                    if len(batch) >= _BATCH:
                        _keep(answers, batch, report)
                        batch = {}
                _keep(answers, batch, report)
            finally:
                connection.close()
        except apsw.Error as error:
            raise InvalidArgumentError(f"{path} is no database of lm_eval's CachingLM: {error}") from error
    return report


def _rows(connection: Any, report: Report) -> Iterator[tuple[bytes, Any]]:
    for number, key, length, value in connection.execute(
        "SELECT rowid, key, length(value), CASE WHEN length(value) <= ? THEN value END FROM unnamed", (MAX_VALUE_BYTES,)
    ):
        report.entries += 1
        try:
            if type(key) is not str or len(key) != 64:
                raise CorruptEntryError("its key is no digest")
            digest = bytes.fromhex(key)
            if type(value) is not bytes:
                raise CorruptEntryError(f"its value is no pickle, or has too many bytes ({length})")
            answer = read_plain(value)
        except (CorruptEntryError, ValueError) as error:
            report.refused += 1
            if len(report.problems) < _MOST_PROBLEMS:
                report.problems.append(f"row {number}: {error}")
            continue
        if answer is None or answer == "":
            report.empty += 1
        else:
            yield digest, answer


def read_plain(pickled: bytes) -> Any:
    """Return the text, number, or tuple or list of numbers and texts, that a pickle describes. Nothing is unpickled.

    Raises:
        CorruptEntryError: It describes something else.
    """
    found = follow(io.BytesIO(pickled), len(pickled), names=(), max_text_bytes=MAX_VALUE_BYTES)
    parts = found if type(found) in (tuple, list) else [found]
    if not all(type(each) in (type(None), bool, int, float, str) for each in parts):
        raise CorruptEntryError("it is no text, number, or list of these")
    return found


def _keep(answers: ImportedAnswers, batch: dict[bytes, Any], report: Report) -> None:
    there = answers.contains(list(batch))
    fresh = {digest: value for (digest, value), known in zip(batch.items(), there, strict=True) if not known}
    report.known += len(batch) - len(fresh)
    if fresh:
        report.taken += answers.keep(list(fresh), list(fresh.values()))
