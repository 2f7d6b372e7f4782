"""Kept answers go to JSONL and Parquet, and back from JSONL where each row leads to the key it claims."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmstash
from lmstash.caches.responses import MISSING
from lmstash.caches.responses.answers.finding import Conditions
from lmstash.caches.responses.exporting import export_responses, import_responses
from lmstash.errors import InvalidArgumentError, MissingDependencyError
from lmstash.stash import Stash

PICTURE = np.arange(12, dtype=np.uint8)
ASKED: list[tuple[Any, Any, dict[str, Any]]] = [
    ({"q": "a", "max_tokens": 3}, "four", {"task": "gsm8k", "doc": 0, "split": "test", "tags": ["x"], "epoch": 3}),
    (
        {"q": ("t", b"b", 1e22, -0.0, float("inf"), 2**70), "o": {"$x": 1}},
        ("p", {1: 2}, "\ud800"),
        {"task": "gsm8k_cot"},
    ),
    ({"q": "see", "image": PICTURE}, {"choices": [{"text": "a"}]}, {"doc": "d", "run": "r", "user": "u"}),
    ("bare", [None, True], {}),
]


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        cache = opened.responses(model="provider/m", revision="1", keep_sampled=True)
        for request, answer, tags in ASKED:
            assert cache.put(request, answer, tags=tags, compute_seconds=1.5, ttl_seconds=1000)
        for n in range(2):
            assert cache.put({"q": "hot", "temperature": 1}, f"drawn {n}")
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "other", strict=True) as opened:
        yield opened


def exported(stash: Stash, path: Path, form: str = "jsonl", **options: Any) -> int:
    return export_responses(stash.store, path, form, **options)


def test_an_export_read_back_answers_the_same_requests(stash: Stash, other: Stash, tmp_path: Path) -> None:
    assert exported(stash, tmp_path / "x.jsonl") == 6
    done = import_responses(other.store, tmp_path / "x.jsonl")
    assert done.as_dict() == {"taken": 6, "known": 0, "expired": 0, "unproven": 0, "damaged": 0}
    cache = other.responses(model="provider/m", revision="1", keep_sampled=True)
    for request, answer, tags in ASKED:
        assert cache.get(request) == answer
        assert type(cache.get(request)) is type(answer)
        del tags
    assert [cache.get({"q": "hot", "temperature": 1}, occurrence=n) for n in range(2)] == ["drawn 0", "drawn 1"]
    assert other.responses(model="provider/m", revision="2").get("bare", MISSING) is MISSING
    assert next(cache.find(task="gsm8k")).tags == ASKED[0][2]
    assert [each.compute_seconds for each in cache.find(task="gsm8k")] == [1.5]
    assert import_responses(other.store, tmp_path / "x.jsonl").known == 6
    assert exported(other, tmp_path / "y.jsonl") == 6
    ours, theirs = (
        {
            row["key"]: {name: row[name] for name in row if name not in ("created", "expires")}
            for row in map(json.loads, (tmp_path / name).read_text().splitlines())
        }
        for name in ("x.jsonl", "y.jsonl")
    )
    assert ours == theirs


def test_what_is_kept_already_stays(stash: Stash, other: Stash, tmp_path: Path) -> None:
    exported(stash, tmp_path / "x.jsonl")
    cache = other.responses(model="provider/m", revision="1")
    cache.put("bare", "mine")
    done = import_responses(other.store, tmp_path / "x.jsonl")
    assert (done.taken, done.known) == (5, 1)
    assert cache.get("bare") == "mine"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("request", {"q": "another"}, "unproven"),
        ("fingerprint", "00" * 32, "unproven"),
        ("fingerprint", "zz", "damaged"),
        ("occurrence", 1, "unproven"),
        ("occurrence", True, "unproven"),
        ("key", "00" * 32, "unproven"),
        ("request", None, "unproven"),
        ("request", {"$tuple": 1}, "damaged"),
        ("answer", {"$bytes": "no base64!"}, "damaged"),
        ("answer", {"$nonsense": []}, "damaged"),
        ("expires", 1.0, "expired"),
        ("expires", "soon", "damaged"),
        ("compute_seconds", "long", "damaged"),
        ("facts", 3, "damaged"),
    ],
)
def test_a_row_that_does_not_lead_to_its_key_is_not_taken(
    stash: Stash, other: Stash, tmp_path: Path, field: str, value: Any, reason: str
) -> None:
    exported(stash, tmp_path / "x.jsonl", conditions=Conditions(task="gsm8k"))
    row = json.loads((tmp_path / "x.jsonl").read_text())
    (tmp_path / "x.jsonl").write_text(json.dumps(row | {field: value}) + "\n")
    done = import_responses(other.store, tmp_path / "x.jsonl")
    assert {name: number for name, number in done.as_dict().items() if number} == {reason: 1}
    assert other.info().entries == 0


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"null", b'{"key": 1}', b"\xff\xfe", b"[" * 100_000])
def test_lines_that_are_no_rows_are_counted_and_the_others_taken(
    stash: Stash, other: Stash, tmp_path: Path, line: bytes
) -> None:
    exported(stash, tmp_path / "x.jsonl")
    path = tmp_path / "x.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    done = import_responses(other.store, path)
    assert (done.taken, done.damaged) == (6, 1)


def test_salted_answers_need_their_salt(other: Stash, tmp_path: Path) -> None:
    with lmstash.open(tmp_path / "salted", strict=True, salt="tenant") as stash:
        stash.responses(model="m").put("q", "a")
        exported(stash, tmp_path / "x.jsonl")
    assert import_responses(other.store, tmp_path / "x.jsonl").unproven == 1
    assert import_responses(other.store, tmp_path / "x.jsonl", salt="tenant").taken == 1
    assert other.responses(model="m", salt="tenant").get("q") == "a"
    assert other.responses(model="m").get("q", MISSING) is MISSING


def test_parquet(stash: Stash, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert exported(stash, tmp_path / "x.parquet", "parquet") == 6
    table = parquet.read_table(tmp_path / "x.parquet")
    rows = {row["key"]: row for row in table.to_pylist()}
    lines = tmp_path / "x.jsonl"
    exported(stash, lines)
    for line in lines.read_text().splitlines():
        row = json.loads(line)
        flat = rows[row["key"]]
        assert json.loads(flat["request"]) == row["request"]
        assert json.loads(flat["answer"]) == row["answer"]
        assert flat["doc"] == (None if row["doc"] is None else str(row["doc"]))
        assert (flat["task"], flat["tags"], flat["model"]) == (row["task"], row["tags"], "provider/m")
        assert abs(flat["created"].timestamp() - row["created"]) < 1e-3


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_tags_of_any_kind_are_exported(stash: Stash, other: Stash, tmp_path: Path, form: str) -> None:
    cache = stash.responses(model="provider/m", revision="1")
    odd: list[Any] = [{"task": "caf\udce9.txt"}, {"tags": "word"}, {"tags": 5}, {"tags": None}, {"doc": {"a": [1]}}]
    for number, tags in enumerate(odd):
        assert cache.put({"odd": number}, "y", tags=tags)
    assert len(list(cache.find(tag="word"))) == 1
    assert exported(stash, tmp_path / "x", form) == 6 + len(odd)
    if form == "jsonl":
        assert import_responses(other.store, tmp_path / "x").taken == 6 + len(odd)
        assert [each.tags["task"] for each in other.responses(model="provider/m", revision="1").find(task="caf*")] == [
            "caf?.txt"
        ]


def test_an_export_that_fails_leaves_what_was_there(
    stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("before")
    monkeypatch.setattr(json, "dumps", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exported(stash, path)
    assert path.read_text() == "before"
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*"))


def test_what_is_missing_or_wrong_is_said(stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="jsonl or parquet"):
        exported(stash, tmp_path / "x.csv", "csv")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"lmstash\[eval\]"):
        exported(stash, tmp_path / "x.parquet", "parquet")
