"""Settings: what wins over what, what cannot be read, and where a value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmstash.errors import InvalidArgumentError
from lmstash.settings import (
    DEFAULT_CAPACITY_BYTES,
    config_file,
    parse_age,
    parse_bool,
    parse_bytes,
    resolve,
    resolve_all,
    settings_stamp,
)


@pytest.mark.parametrize("size", [0.5, "0.5", "0.0001k", float("nan"), float("inf"), "1.2.3", ".", "", b"5", [5]])
def test_half_a_byte_is_no_limit(size: Any):
    with pytest.raises(InvalidArgumentError, match="not a size"):
        parse_bytes(size)


@pytest.mark.parametrize("size", [np.int64(5), np.float32(5.0), np.uint8(5), True + 4])
def test_sizes_may_be_numbers_of_numpy_s(size: Any):
    assert type(parse_bytes(size)) is int
    assert parse_bytes(size) == 5


def test_spans_of_time_are_read():
    spans = ("90", "90s", "2m", "1.5h", ".5h", "2.h", "1d", "2w", 90, 0.5)
    assert [parse_age(span) for span in spans] == [90, 90, 120, 5400, 1800, 7200, 86400, 1209600, 90, 0.5]
    assert parse_age(10**400) > 1e300
    assert parse_age(-(10**400)) < -1e300
    assert parse_age(float("inf")) > 1e300
    for nonsense in ("a while", "", ".", "h", None, b"90", float("nan")):
        with pytest.raises(InvalidArgumentError, match="not a span of time"):
            parse_age(nonsense)  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("span", [np.int64(3), np.float32(3), np.float16(3), np.float64(3)])
def test_spans_of_time_may_be_numbers_of_numpy_s(span: Any):
    assert type(parse_age(span)) is float
    assert parse_age(span) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50GB", 50 * 2**30),
        ("1.5 MiB", 3 * 2**19),
        (".5GB", 2**29),
        ("2.GB", 2**31),
        ("4k", 4096),
        ("7", 7),
        ("1_000", 1000),
        (" 2 tb ", 2**41),
        (12, 12),
        (2.9, 2),
        ("unlimited", None),
        ("None", None),
        (None, None),
        ("0", 0),
    ],
)
def test_sizes_are_read_in_powers_of_1024(text: object, expected: int | None):
    assert parse_bytes(text) == expected  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["", "GB", "ten", "1XB", "-5", -5, "5 5", "0x10"])
def test_what_is_no_size_is_refused(text: object):
    with pytest.raises(InvalidArgumentError):
        parse_bytes(text)  # pyright: ignore[reportArgumentType]


def test_truth_values():
    assert [parse_bool(word) for word in ("1", "ON", "Yes", "true", True)] == [True] * 5
    assert [parse_bool(word) for word in ("0", "off", "No", "FALSE", "", False)] == [False] * 6
    with pytest.raises(InvalidArgumentError, match="maybe"):
        parse_bool("maybe")


def test_an_argument_wins_over_the_environment_and_that_over_the_config_file(monkeypatch: pytest.MonkeyPatch):
    assert resolve("capacity").value == DEFAULT_CAPACITY_BYTES
    assert resolve("capacity").origin == "default"
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text('capacity = "1GB"\nstrict = true\n')
    assert resolve("capacity").value == 2**30
    assert resolve("capacity").origin == f"config {config_file()}"
    assert resolve("strict").value is True
    monkeypatch.setenv("LMSTASH_CAPACITY", "2GB")
    assert resolve("capacity").value == 2**31
    assert resolve("capacity").origin == "environment LMSTASH_CAPACITY"
    assert resolve("capacity", "3GB").value == 3 * 2**30
    assert resolve("capacity", None).value is None
    assert resolve("capacity", trust_env=False).origin == "default"
    assert resolve_all()["capacity"].value == 2**31
    config_file().unlink()


def test_what_cannot_be_read_names_its_origin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LMSTASH_STRICT", "perhaps")
    with pytest.raises(InvalidArgumentError, match="environment LMSTASH_STRICT"):
        resolve("strict")
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text("capacity = [unclosed")
    try:
        with pytest.raises(InvalidArgumentError, match=r"config\.toml is not valid TOML"):
            resolve("capacity")
    finally:
        config_file().unlink()


def test_the_folder_follows_the_xdg_base_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert resolve("dir").value == str(tmp_path / "xdg" / "lmstash")
    monkeypatch.setenv("LMSTASH_DIR", str(tmp_path / "mine"))
    assert resolve("dir").value == str(tmp_path / "mine")


def test_a_stamp_changes_with_whatever_a_setting_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = [settings_stamp()]
    assert settings_stamp() == seen[0]
    monkeypatch.setenv("LMSTASH_SALT", "a")
    seen.append(settings_stamp())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    seen.append(settings_stamp())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    seen.append(settings_stamp())
    config_file().parent.mkdir(parents=True)
    config_file().write_text("strict = true")
    seen.append(settings_stamp())
    config_file().write_text("strict = false")
    seen.append(settings_stamp())
    assert len(set(seen)) == 6
