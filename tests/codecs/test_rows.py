import numpy as np
import pytest
import torch

from lmstash.codecs import rows as rows_module
from lmstash.codecs.rows import stack_rows
from lmstash.codecs.tensors import encode_tensors
from lmstash.errors import InvalidArgumentError

torch.set_num_threads(1)


def joined(tensors, **kw):
    return b"".join(encode_tensors(tensors, **kw))


def encodings(batch):
    return [joined({"x": row}) for row in batch]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4)], ids=str)
def test_rows_are_the_tensors_converted(stored, asked, shape):
    batch = torch.randn(6, *shape).to(stored)
    out = torch.full((6, *shape), -1.0, dtype=asked)
    assert stack_rows(encodings(batch), "x", out) == []
    assert torch.equal(out, batch.to(asked))


def test_read_only_and_writable_encodings_may_be_mixed():
    batch = torch.randn(4, 9)
    buffers = [kind(b) for kind, b in zip([bytes, bytearray, memoryview, bytes], encodings(batch), strict=True)]
    out = torch.empty(4, 9)
    assert stack_rows(buffers, "x", out) == []
    assert torch.equal(out, batch)


def test_rows_stored_in_other_dtypes_and_beside_other_tensors_find_their_place():
    batch = torch.randn(7, 8)
    batch[2] = 1e30
    buffers = encodings(batch.bfloat16())
    buffers[2] = joined({"x": batch[2]})
    buffers[3] = joined({"other": torch.ones(100), "x": batch[3].bfloat16()}, metadata={"a": "b"})
    buffers[5] = joined({"x": batch[5].double()})
    expected = batch.bfloat16().float()
    expected[2], expected[5] = batch[2], batch[5]
    out = torch.zeros(7, 8)
    assert stack_rows(buffers, "x", out) == []
    assert torch.equal(out, expected)


@pytest.mark.parametrize("frame", ["torch", "numpy"])
def test_rows_go_where_they_are_sent_and_nowhere_else(frame):
    batch = torch.randn(4, 3)
    out = torch.full((10, 3), -1.0)
    target = out if frame == "torch" else out.numpy()
    assert stack_rows(encodings(batch), "x", target, [8, 0, 5, 6]) == []
    expected = torch.full((10, 3), -1.0)
    expected[[8, 0, 5, 6]] = batch
    assert torch.equal(out, expected)


@pytest.mark.parametrize("frame", ["torch", "numpy"])
def test_views_of_a_larger_result_are_filled(frame):
    whole = torch.zeros(6, 2, 4)
    part = whole[1:5, 1]
    batch = torch.randn(4, 4)
    assert stack_rows(encodings(batch), "x", part if frame == "torch" else part.numpy()) == []
    assert torch.equal(whole[1:5, 1], batch)
    assert whole[:, 0].abs().sum() == 0
    assert whole[[0, 5]].abs().sum() == 0


def test_memory_maps_are_filled(tmp_path):
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(3, 5))
    batch = torch.randn(3, 5)
    assert stack_rows(encodings(batch.half()), "x", out) == []
    assert (np.asarray(out) == batch.half().float().numpy()).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("limit", [1, 100, 1 << 20])
def test_the_size_of_a_gathering_does_not_show(monkeypatch, limit, kind):
    monkeypatch.setattr(rows_module, "_CHUNK_BYTES", limit)
    batch = torch.randn(33, 10)
    buffers = [kind(encoding) for encoding in encodings(batch)]
    buffers[7] = joined({"x": batch[7].double()})
    before = list(map(bytes, buffers))
    order = torch.randperm(33).tolist()
    out = torch.zeros(33, 10)
    assert stack_rows(buffers, "x", out, order) == []
    assert torch.equal(out[order], batch)
    assert list(map(bytes, buffers)) == before


def test_unusable_encodings_are_named_and_leave_the_others_alone():
    batch = torch.randn(8, 4)
    buffers = encodings(batch)
    buffers[0] = b""
    buffers[2] = buffers[2][:-1]
    buffers[3] = joined({"y": batch[3]})
    buffers[5] = joined({"x": torch.ones(5)})
    buffers[6] = b"\xff" + buffers[6][1:]
    out = torch.full((8, 4), -1.0)
    assert stack_rows(buffers, "x", out) == [0, 2, 3, 5, 6]
    good = [1, 4, 7]
    assert torch.equal(out[good], batch[good])
    assert (out[[0, 2, 3, 5, 6]] == -1).all()


def test_a_header_that_differs_only_in_its_data_length_is_not_taken_for_the_last_one():
    batch = torch.randn(2, 4)
    buffers = encodings(batch)
    buffers[1] += b"\0"
    out = torch.zeros(2, 4)
    assert stack_rows(buffers, "x", out) == [1]
    assert out[1].tolist() == [0] * 4


def test_nothing_and_empty_rows_are_fine():
    assert stack_rows([], "x", torch.empty(0, 4)) == []
    assert stack_rows([], "x", torch.empty(3, 4), []) == []
    for out in (torch.empty(2, 0), np.empty((2, 0, 3), np.float32)):
        buffers = encodings(torch.empty(2, *out.shape[1:]))
        assert stack_rows(buffers, "x", out) == []


@pytest.mark.parametrize("rows", [[0], [0, 5], [-1, 0], [0, 1, 2]])
def test_rows_that_are_not_there_are_the_callers_fault(rows):
    with pytest.raises(InvalidArgumentError):
        stack_rows(encodings(torch.ones(2, 3)), "x", torch.empty(4, 3), rows)


def test_more_buffers_than_rows_are_the_callers_fault():
    with pytest.raises(InvalidArgumentError):
        stack_rows(encodings(torch.ones(5, 3)), "x", torch.empty(4, 3))
