"""Old `.pt` files are read without unpickling: plain tensors come out equal, everything else is refused."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmstash.adapters.lmprobe.torchfile import read_torch_tensor
from lmstash.errors import CorruptEntryError


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/lmstash-evil-was-run",)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_every_plain_dtype_reads_back_bit_equal(tmp_path: Path, dtype: torch.dtype):
    tensor = (torch.randn(1, 5, 7) * 10).to(dtype)
    torch.save(tensor, tmp_path / "t.pt")
    read = read_torch_tensor(tmp_path / "t.pt")
    assert read.dtype == dtype
    assert torch.equal(read, tensor)


def test_views_of_larger_storages_keep_their_offset_and_strides(tmp_path: Path):
    batch = torch.arange(120.0).reshape(4, 5, 6)
    for name, view in {"row": batch[2:3], "turned": batch.transpose(0, 2), "stepped": batch[::2, 1:4, ::3]}.items():
        torch.save(view, tmp_path / f"{name}.pt")
        read = read_torch_tensor(tmp_path / f"{name}.pt")
        assert torch.equal(read, view)
        assert read.is_contiguous()


def test_zero_size_and_zero_dimensional_tensors_read_back(tmp_path: Path):
    for tensor in (torch.zeros(0, 4), torch.tensor(3.5)):
        torch.save(tensor, tmp_path / "t.pt")
        assert torch.equal(read_torch_tensor(tmp_path / "t.pt"), tensor)


@pytest.mark.parametrize("make", [lambda: [torch.ones(2)], lambda: {"a": torch.ones(2)}, lambda: torch.nn.Linear(2, 2)])
def test_more_than_one_plain_tensor_is_refused(tmp_path: Path, make):
    torch.save(make(), tmp_path / "t.pt")
    with pytest.raises(CorruptEntryError, match="plain tensor"):
        read_torch_tensor(tmp_path / "t.pt")


def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(), protocol=2))
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(CorruptEntryError):
        read_torch_tensor(tmp_path / "t.pt")
    assert not Path("/tmp/lmstash-evil-was-run").exists()


def test_a_tensor_reaching_past_its_storage_is_refused(tmp_path: Path):
    torch.save(torch.arange(8.0), tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "cut.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:16] if name.endswith("data/0") else data)
    with pytest.raises(CorruptEntryError, match="announced"):
        read_torch_tensor(tmp_path / "cut.pt")


def test_the_old_format_and_ordinary_pickles_are_refused(tmp_path: Path):
    torch.save(torch.ones(2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(OrderedDict()))
    for name in ("old.pt", "pickle.pt"):
        with pytest.raises(CorruptEntryError, match="older than torch"):
            read_torch_tensor(tmp_path / name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(1, 255), cut=st.booleans())
def test_damaged_files_raise_only_corrupt_entry_error(tmp_path: Path, position: int, value: int, cut: bool):
    path = tmp_path / "whole.pt"
    if not path.exists():
        torch.save(torch.arange(12.0).reshape(3, 4), path)
    data = bytearray(path.read_bytes())
    if cut:
        del data[position % len(data) :]
    else:
        data[position % len(data)] ^= value
    (tmp_path / "t.pt").write_bytes(data)
    try:
        read = read_torch_tensor(tmp_path / "t.pt")
    except CorruptEntryError:
        return
    assert torch.equal(read, torch.arange(12.0).reshape(3, 4))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(description=st.binary(max_size=200))
def test_hostile_descriptions_raise_only_corrupt_entry_error(tmp_path: Path, description: bytes):
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + description)
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(CorruptEntryError):
        read_torch_tensor(tmp_path / "t.pt")
