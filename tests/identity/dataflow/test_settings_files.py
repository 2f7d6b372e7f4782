"""What files of settings hold, and which calls load them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import yaml

from lmstash.identity.dataflow.expressions import CALL, expressions
from lmstash.identity.dataflow.lying_in import UNKNOWN
from lmstash.identity.dataflow.settings_files import ENDINGS, endings_of, held_in
from lmstash.identity.dataflow.values import Scope


def test_what_files_hold_is_read_anew_when_they_change(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.yaml", "c.toml", "d.txt")]
    for n in (1, 2):
        for path, text in zip(paths, ['{"n": %d}', "n: %d", "n = %d", "n %d"], strict=True):
            path.write_text(text % n)
            os.utime(path, ns=(n, n))
        assert [*held_in(map(str, paths), ENDINGS)] == [{"n": n}] * 3
        assert [*held_in(map(str, paths), (".toml",))] == [{"n": n}]
    paths[0].unlink()
    assert len([*held_in(map(str, paths), ENDINGS)]) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", b"{"),
        ("a.json", b"\xff\xfe{}"),
        ("a.json", b"[" * 100_000),
        ("a.json", b"1" * (257 << 10)),
        ("a.yaml", b"a: [1"),
        ("a.yaml", b"!!python/object/apply:os.system ['touch hacked']"),
        ("a.toml", b"a ="),
    ],
)
def test_what_cannot_be_read_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(text)
    assert [*held_in([name], ENDINGS)] == [UNKNOWN]
    assert os.listdir() == [name]


CALLS = {
    "json.load(x)": (".json",),
    "json.loads(x)": (".json",),
    "yaml.safe_load(x)": (".yaml", ".yml", ".json"),
    "yaml.load(x, Loader=1)": (".yaml", ".yml", ".json"),
    "tomllib.load(x)": (".toml",),
    "read(x)": (),
    "load(x)": (".json",),
    "safe_load(x)": (".yaml", ".yml", ".json"),
    "torch.load(x)": (),
    "json.dumps(x)": (),
    "model.load(x)": (),
}


@pytest.mark.parametrize("call", CALLS)
def test_which_calls_load_them(call: str) -> None:
    table: dict[str, Any] = {"load": json.load, "safe_load": yaml.safe_load}
    exec(f"def f(x): return {call}", table)
    function = table["f"]
    assert isinstance(function, FunctionType)
    node = next(each for each in expressions(function.__code__) if each.kind == CALL)
    values = Scope(function).values(node.parts[0], function.__code__)
    assert endings_of(node.parts[0], values) == CALLS[call]
