"""Backend, limit, dtype and logging are set process-wide, checked when set, and never at import."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import lmstash.adapters.lmprobe as adapter
from lmstash.adapters.lmprobe import CacheBackend, config
from lmstash.adapters.lmprobe.backend_store import BackendStore
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    config.reset()
    for name in ("LMPROBE_CACHE_MAX_GB", "LMPROBE_CACHE_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    yield
    config.reset()


class Blobs(CacheBackend):
    def exists(self, key):
        return False

    def read_bytes(self, key):
        raise KeyError(key)

    def write_bytes(self, key, data):
        pass

    def delete(self, key):
        pass

    def list_keys(self, prefix=""):
        return []

    def size(self, key):
        return 0

    def mtime(self, key):
        return 0.0

    def touch(self, key):
        pass


def test_folders_stashes_stores_and_backends_are_taken(tmp_path: Path):
    stash, store = Stash(MemoryStore()), MemoryStore()
    adapter.set_cache_backend(stash)
    assert config.current_stash() is stash
    adapter.set_cache_backend(store)
    assert config.current_stash().store is store
    adapter.set_cache_backend(Blobs())
    assert isinstance(config.current_stash().store, BackendStore)
    adapter.set_cache_backend(str(tmp_path / "folder"))
    assert config.current_stash().store.info().location == str(tmp_path / "folder")
    adapter.set_cache_backend(tmp_path / "other")
    assert (tmp_path / "other").is_dir()


def test_none_opens_the_default_at_the_next_use(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LMSTASH_DIR", str(tmp_path / "default"))
    adapter.set_cache_backend(MemoryStore())
    adapter.set_cache_backend(None)
    assert not (tmp_path / "default").exists()
    assert config.current_stash().store.info().location == str(tmp_path / "default")


@pytest.mark.parametrize("uri", ["s3://bucket/prefix", "gs://bucket", "az://container"])
def test_object_stores_say_when_they_come(uri):
    with pytest.raises(InvalidArgumentError, match="object-store tier"):
        adapter.set_cache_backend(uri)


@pytest.mark.parametrize("backend", [3, object(), ["folder"]])
def test_anything_else_is_refused(backend):
    with pytest.raises(InvalidArgumentError, match="a cache backend is"):
        adapter.set_cache_backend(backend)


def test_a_backend_that_is_refused_leaves_the_one_in_use():
    store = MemoryStore()
    adapter.set_cache_backend(store)
    with pytest.raises(InvalidArgumentError):
        adapter.set_cache_backend("s3://bucket")
    assert config.current_stash().store is store


def test_the_limit_goes_to_the_backend_in_use_and_to_the_next_one():
    """W10: lmprobe's evict works on the folder of an environment variable, whatever the backend."""
    first, second = MemoryStore(), MemoryStore()
    adapter.set_cache_backend(first)
    adapter.set_cache_limit(0.5)
    assert first.capacity_bytes == 2**29
    adapter.set_cache_backend(second)
    assert second.capacity_bytes == 2**29
    adapter.set_cache_limit(None)
    assert second.capacity_bytes is None


def test_without_a_limit_set_the_stores_own_one_stays():
    store = MemoryStore(12345)
    adapter.set_cache_backend(store)
    assert store.capacity_bytes == 12345
    adapter.set_cache_limit(0)
    assert store.capacity_bytes == 12345


@pytest.mark.parametrize("gb", [-1, float("nan"), float("inf"), "1", True])
def test_limits_that_are_none_are_refused(gb):
    with pytest.raises(InvalidArgumentError):
        adapter.set_cache_limit(gb)


@pytest.mark.parametrize("dtype", ["float8", "int8", 16])
def test_unknown_dtypes_are_refused(dtype):
    with pytest.raises(InvalidArgumentError, match="bfloat16"):
        adapter.set_cache_dtype(dtype)


def test_the_environment_is_read_at_use_and_explicit_calls_go_first(monkeypatch):
    monkeypatch.setenv("LMPROBE_CACHE_MAX_GB", "0.25")
    monkeypatch.setenv("LMPROBE_CACHE_DTYPE", "float16")
    store = MemoryStore()
    adapter.set_cache_backend(store)
    assert store.capacity_bytes == 2**28
    assert config.storage_dtype() == "float16"
    adapter.set_cache_dtype(None)
    adapter.set_cache_limit(None)
    assert config.storage_dtype() is None
    assert store.capacity_bytes is None


def test_environment_values_that_cannot_be_read_are_ignored_with_one_warning(monkeypatch, caplog):
    monkeypatch.setenv("LMPROBE_CACHE_MAX_GB", "plenty")
    monkeypatch.setenv("LMPROBE_CACHE_DTYPE", "float7")
    store = MemoryStore(777)
    for _ in range(2):
        adapter.set_cache_backend(store)
        assert config.storage_dtype() is None
    assert store.capacity_bytes == 777
    assert caplog.text.count("LMPROBE_CACHE_MAX_GB") == 1
    assert caplog.text.count("LMPROBE_CACHE_DTYPE") == 1


def test_import_does_not_read_the_environment(monkeypatch):
    """lmprobe raises ValueError at import when LMPROBE_CACHE_MAX_GB is not a number."""
    monkeypatch.setenv("LMPROBE_CACHE_MAX_GB", "plenty")
    subprocess.run([sys.executable, "-c", "import lmstash.adapters.lmprobe"], check=True, timeout=120)


def test_logging_adds_one_handler_however_often_it_is_enabled():
    logger = logging.getLogger("lmstash")
    handlers, level = list(logger.handlers), logger.level
    logger.handlers.clear()
    try:
        for _ in range(3):
            adapter.enable_cache_logging(logging.DEBUG)
        assert len(logger.handlers) == 1
        assert logger.level == logging.DEBUG
        adapter.enable_cache_logging()
        assert logger.level == logging.INFO
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
