"""Kept answers as JSONL or Parquet, and back from JSONL into another stash.

One row per answer. `request` and `answer` are records (`lmstash.codecs.records`): what JSON can say is plain JSON, the
rest has a tag, so that nothing is lost. In Parquet they are JSON texts. A row holds all that its key is made of but
the salt, so whoever reads it back makes the key anew, and takes only rows that lead to the key they claim.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lmstash.caches.models import ModelNames, fingerprint_of, name_model, read_digests
from lmstash.caches.responses.answers.finding import Conditions, occurrence_of, scan
from lmstash.caches.responses.answers.records import pack, read_back
from lmstash.caches.responses.requests.asking import KIND, Namer
from lmstash.caches.tags import NAMED
from lmstash.errors import FormatError, InvalidArgumentError, MissingDependencyError
from lmstash.store.base import Store, Write

FORMATS = ("jsonl", "parquet")
_AT_ONCE = 1000
_WITH_COLUMN = frozenset({*NAMED, "tags", "occurrence"})


@dataclass(slots=True)
class Imported:
    """What reading an export back did, in rows."""

    taken: int = 0
    known: int = 0
    """Kept already, and left as it was."""
    expired: int = 0
    unproven: int = 0
    """Without what their key is made of (a private stash, a model that is not described), or under a salt."""
    damaged: int = 0
    """No row of an export, or another answer's key."""

    def as_dict(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people."""
        return ", ".join(f"{number:,} {name}" for name, number in self.as_dict().items())


def rows(store: Store, conditions: Conditions, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield each kept answer that meets the conditions as a row, JSON-able.

    Args:
        store: Where they are kept.
        conditions: Which.
        **options: As `finding.scan` takes.
    """
    names, models = ModelNames(store), read_digests(store)
    for kept in scan(store, conditions, **options):
        entry = kept.entry
        model, meta = models.get(fingerprint_of(entry)), _shown(entry.meta)
        words = meta.get("tags") or []
        try:
            request = json.loads(kept.request) if kept.request else None
            answer = json.loads(kept.answer)
        except ValueError as error:
            store.events.damage(entry.namespace, entry.key, str(error))
            continue
        yield {
            "key": entry.key.hex(),
            "model": names.of(entry) or None,
            "fingerprint": fingerprint_of(entry) if model is None else model.hex(),
            **{name: meta.get(name) for name in NAMED},
            "tags": words if isinstance(words, list) else [words],
            "facts": {name: value for name, value in meta.items() if name not in _WITH_COLUMN},
            "occurrence": occurrence_of(entry),
            "request": request,
            "answer": answer,
            "created": entry.created,
            "expires": entry.expires,
            "compute_seconds": entry.compute_seconds,
        }


def _shown(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts that a file can hold: lone surrogates, as names of files have them, become question marks."""
    return json.loads(json.dumps(meta, ensure_ascii=False).encode("utf-8", "replace"))


def export_responses(store: Store, out: str | os.PathLike[str] | IO[str], form: str = "jsonl", **options: Any) -> int:
    """Write kept answers to a file, which appears when it is whole; returns how many.

    Args:
        store: Where they are kept.
        out: The file; for JSONL also something that is open for text.
        form: `jsonl` or `parquet` (needs pyarrow).
        **options: `conditions=`, and as `finding.scan` takes.

    Raises:
        InvalidArgumentError: Another form.
        MissingDependencyError: pyarrow is not installed.
    """
    if form not in FORMATS:
        raise InvalidArgumentError(f"responses are exported as {' or '.join(FORMATS)}, not {form!r}")
    options.setdefault("conditions", Conditions())
    found = rows(store, **options)
    if not isinstance(out, str | os.PathLike):
        if form != "jsonl":
            raise InvalidArgumentError(f"{form} is written to a file: name it")
        return _write_lines(found, out)
    path = Path(out)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if form == "jsonl":
            with part.open("w", encoding="utf-8") as file:
                n_rows = _write_lines(found, file)
        else:
            n_rows = _write_parquet(found, part)
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return n_rows


def import_responses(
    store: Store, file: str | os.PathLike[str], *, salt: str | bytes | None = None, private: bool = False
) -> Imported:
    """Keep the answers of a JSONL export; what is kept already stays as it is.

    The key of each row is made anew from its model, request and occurrence. Nobody can tell whether its answer is what
    that model said: whoever imports a file trusts who wrote it, as one does who opens their stash.

    Args:
        store: Where to keep them.
        file: The export.
        salt: The salt that they were kept under, and will be.
        private: Keep no request beside the answer.

    Raises:
        OSError: The file cannot be read.
    """
    done, described = Imported(), set[bytes]()
    with Path(file).open("rb") as lines:
        while part := list(islice(lines, _AT_ONCE)):
            writes = [write for line in part if (write := _read_row(line, salt, private, done, described, store))]
            keys = list({write.key: None for write in writes})
            known = sum(store.contains_many(keys))
            done.known += known + len(writes) - len(keys)
            done.taken += store.put_many(writes, replace=False) - known - (len(writes) - len(keys))
    return done


def _read_row(
    line: bytes, salt: str | bytes | None, private: bool, done: Imported, described: set[bytes], store: Store
) -> Write | None:
    try:
        row: dict[str, Any] = json.loads(line)
        answer, request = _record(row["answer"]), _record(row["request"])
        for record in (answer, request):
            read_back(record)
        model, key = bytes.fromhex(row["fingerprint"]), bytes.fromhex(row["key"])
        occurrence, expires = row.get("occurrence", 0), row.get("expires")
        meta = {name: value for name in NAMED if isinstance(value := row.get(name), str | int | float)}
        meta |= dict(row.get("facts") or {})
        words = [each for each in row.get("tags") or () if isinstance(each, str)]
        seconds, left = float(row.get("compute_seconds") or 0.0), None if expires is None else expires - time.time()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FormatError):
        done.damaged += 1
        return None
    if left is not None and left <= 0:
        done.expired += 1
        return None
    if row["request"] is None or len(model) != 32 or type(occurrence) is not int:
        done.unproven += 1
        return None
    if Namer(model, salt).name(request, occurrence) != key:
        done.unproven += 1
        return None
    if model not in described:
        described.add(model)
        name_model(store, model, str(row.get("model") or ""))
    meta |= {"tags": words} if words else {}
    meta |= {"occurrence": occurrence} if occurrence else {}
    namespace = f"{KIND}/{model.hex()[:16]}"
    return Write(key, pack(answer, b"" if private else request), namespace, meta, b"", seconds, 0, left)


def _record(value: Any) -> bytes:
    """Return a record again, byte for byte, after JSON was read from it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _write_lines(found: Iterable[dict[str, Any]], file: IO[str]) -> int:
    n_rows = 0
    for row in found:
        file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
        n_rows += 1
    return n_rows


def _write_parquet(found: Iterator[dict[str, Any]], path: Path) -> int:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise MissingDependencyError("pyarrow", "eval") from None
    text, number, moment = pa.string(), pa.float64(), pa.timestamp("us", tz="UTC")
    columns = {"key": text, "model": text, "fingerprint": text, **dict.fromkeys(NAMED, text)}
    columns |= {"tags": pa.list_(text), "facts": text, "occurrence": pa.int64(), "request": text, "answer": text}
    columns |= {"created": moment, "expires": moment, "compute_seconds": number}
    schema = pa.schema(list(columns.items()))
    n_rows = 0
    with ParquetWriter(path, schema, compression="zstd") as writer:
        while part := list(islice(found, _AT_ONCE)):
            writer.write_table(pa.Table.from_pylist([_flat(row) for row in part], schema=schema))
            n_rows += len(part)
    return n_rows


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of plain columns."""
    moments = {name: None if row[name] is None else round(row[name] * 1e6) for name in ("created", "expires")}
    records = {
        name: None if row[name] is None else _record(row[name]).decode() for name in ("request", "answer", "facts")
    }
    named = {name: None if row[name] is None else str(row[name]) for name in NAMED}
    return row | moments | records | named | {"tags": [str(each) for each in row["tags"]]}
