"""What files hold, read once for each version of a file."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from lmstash.errors import UnsupportedModelError
from lmstash.identity.content import files
from lmstash.identity.content.files import file_digest, read_ahead, stamp_of


def test_a_digest_is_of_the_bytes_and_read_once(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights" * 1000)
    monkeypatch.setattr(files, "FRESH_NS", 0)  # as if it had been so for long
    stamp = stamp_of(str(path))
    assert stamp is not None
    assert file_digest(str(path), stamp) == hashlib.sha256(b"weights" * 1000).digest()
    monkeypatch.setattr(files, "_read", None)
    assert file_digest(str(path), stamp) == hashlib.sha256(b"weights" * 1000).digest()


def test_a_file_replaced_since_it_was_stamped_has_no_digest(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    stamp = stamp_of(str(path))
    assert stamp is not None
    (tmp_path / "other").write_bytes(b"WEIGHTS")
    os.replace(tmp_path / "other", path)
    with pytest.raises(UnsupportedModelError, match="changed"):
        file_digest(str(path), stamp)
    os.remove(path)
    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        file_digest(str(path), stamp)


def test_a_file_that_changes_within_a_tick_of_its_clock_has_the_digest_of_what_it_holds(tmp_path, monkeypatch):
    path = tmp_path / "frame.bmp"
    path.write_bytes(b"first")
    stamp = stamp_of(str(path))
    assert stamp is not None
    assert file_digest(str(path), stamp) == hashlib.sha256(b"first").digest()
    path.write_bytes(b"other")
    # Stamps of clocks that tick too slowly to tell the two.
    monkeypatch.setattr(files.Stamp, "of", classmethod(lambda cls, status: stamp))
    assert file_digest(str(path), stamp) == hashlib.sha256(b"other").digest()


def test_a_time_of_writing_put_back_hides_nothing(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    before = os.stat(path)
    stamp = stamp_of(str(path))
    time.sleep(0.02)
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamp_of(str(path)) != stamp


def test_reading_ahead_leaves_nothing_to_read(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"ahead" * 1000)
    monkeypatch.setattr(files, "FRESH_NS", 0)
    read_ahead([str(tmp_path / "missing"), str(path)])
    stamp = stamp_of(str(path))
    assert stamp is not None
    until = time.monotonic() + 10
    while stamp not in files._digests._known and time.monotonic() < until:
        time.sleep(0.01)
    monkeypatch.setattr(files, "_read", None)
    assert file_digest(str(path), stamp) == hashlib.sha256(b"ahead" * 1000).digest()
