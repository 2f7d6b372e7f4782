"""Blobs of llama.cpp: cut and built byte-equal in every layout; anything else is a clear error and nothing worse."""

import contextlib
import itertools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmstash.caches.states.blob import Span, blob_bytes, build, cut, extensions, parse
from lmstash.caches.states.layout import Layout, Part, Sides, decode_layout
from lmstash.errors import CorruptEntryError

from .conftest import EXTENDED, LAYOUTS, ROWS, TRANSPOSED, TWO_PARTS, toy_blob

layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@layouts
@pytest.mark.parametrize("n_tokens", [1, 2, 63, 64, 150])
def test_a_blob_says_what_it_holds(layout, n_tokens):
    blob = toy_blob(layout, 0, range(n_tokens))
    state = parse(blob, n_parts=len(layout.parts))
    assert state.layout == layout
    assert state.n_tokens == n_tokens
    assert state.rest == len(blob) == blob_bytes(layout, n_tokens)


@layouts
def test_any_prefix_is_built_from_pieces_as_llama_cpp_would_write_it(layout):
    state = parse(toy_blob(layout, 0, range(150)), n_parts=len(layout.parts))
    bounds = [0, 64, 100, 101, 150]
    pieces = [(cut(state, a, b), b - a) for a, b in itertools.pairwise(bounds)]
    for n_tokens in (1, 64, 65, 100, 130, 150):
        spans, left = [], n_tokens
        for payload, held in pieces:
            if left > 0:
                spans.append(Span(payload, held, 0, min(held, left)))
                left -= held
        assert build(layout, spans).tobytes() == toy_blob(layout, 0, range(n_tokens))
        assert build(layout, spans, sequence=True).tobytes() == toy_blob(layout, 0, range(n_tokens), sequence=0)


@layouts
def test_a_piece_may_be_used_from_its_middle(layout):
    state = parse(toy_blob(layout, 0, range(90)), n_parts=len(layout.parts))
    first, second = cut(state, 0, 50), cut(state, 40, 90)
    spans = [Span(first, 50, 0, 45), Span(second, 50, 5, 50)]
    assert build(layout, spans).tobytes() == toy_blob(layout, 0, range(90))


def test_an_empty_state_has_no_layers():
    blob = toy_blob(ROWS, 0, [])
    assert parse(blob).n_tokens == 0
    assert build(ROWS, []).tobytes() == blob


def test_sequence_blobs_may_be_of_any_sequence():
    blob = toy_blob(TRANSPOSED, 0, range(70), sequence=3)
    state = parse(blob, sequence=True, arch="toy")
    assert cut(state, 5, 70).tobytes() == cut(parse(toy_blob(TRANSPOSED, 0, range(70))), 5, 70).tobytes()


def test_a_rest_is_kept_apart():
    blob = toy_blob(ROWS, 0, range(70)) + b"recurrent"
    state = parse(blob, has_rest=True)
    assert bytes(blob[state.rest :]) == b"recurrent"
    again = build(ROWS, [Span(cut(state, 0, 70), 70, 0, 70)], rest=b"recurrent")
    assert again.tobytes() == blob


def test_a_blob_without_parts_is_all_rest():
    state = parse(struct.pack("<I", 3) + b"toy" + b"anything", n_parts=0, has_rest=True)
    assert (state.layout.arch, state.n_tokens, state.rest) == ("toy", 0, 7)


def test_extensions_are_read():
    state = parse(toy_blob(EXTENDED, 0, range(3)))
    (numbers,) = extensions(state)
    assert numbers.shape == (3, 3)
    assert numbers.tobytes() == cut(state, 0, 3)[:36].tobytes()
    assert extensions(parse(toy_blob(ROWS, 0, range(3)))) == []


def test_what_is_cut_is_memory_of_its_own():
    blob = bytearray(toy_blob(ROWS, 0, range(10)))
    piece = cut(parse(blob), 0, 10)
    before = piece.tobytes()
    blob[:] = bytes(len(blob))
    assert piece.tobytes() == before


# --- hostile ----------------------------------------------------------------------------------------------------------


@layouts
def test_a_blob_that_ends_anywhere_is_an_error(layout):
    blob = toy_blob(layout, 0, range(3))
    accepted = []
    for end in range(len(blob)):
        with contextlib.suppress(CorruptEntryError):
            accepted.append(parse(blob[:end], n_parts=len(layout.parts)))
    # One end looks like that of a model without V; its layout says so, and is not the model's.
    assert len(accepted) <= 1
    assert all(state.layout != layout for state in accepted)
    with pytest.raises(CorruptEntryError):
        parse(blob + b"\0", n_parts=len(layout.parts))


_NUMBERS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\0\0\0\x01"]


@given(st.data())
@example(None)
def test_no_bytes_crash_it_or_make_it_take_memory(data):
    layout = TWO_PARTS if data is None else data.draw(st.sampled_from(list(LAYOUTS.values())))
    blob = bytearray(toy_blob(layout, 0, range(5)))
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(blob) - 4))
            blob[at : at + 4] = data.draw(st.sampled_from(_NUMBERS) | st.binary(min_size=4, max_size=4))
    tracemalloc.start()
    try:
        state = parse(bytes(blob), n_parts=len(layout.parts), has_rest=bool(data and data.draw(st.booleans())))
    except CorruptEntryError:
        pass
    else:
        if state.n_tokens:
            assert cut(state, 0, state.n_tokens).nbytes <= len(blob)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=400), st.booleans())
def test_noise_is_an_error(noise, sequence):
    with pytest.raises(CorruptEntryError):
        parse(noise, sequence=sequence, arch="toy")


def _with(blob, at, form, *numbers):
    out = bytearray(blob)
    struct.pack_into(form, out, at, *numbers)
    return bytes(out)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("several streams", lambda blob: _with(blob, 7, "<I", 2)),
        ("a gap in the positions", lambda blob: _with(blob, 15 + 12, "<i", 7)),
        ("positions that start later", lambda blob: _with(blob, 15, "<i", 1)),
        ("two sequences in a cell", lambda blob: _with(blob, 15 + 4, "<I", 2)),
        ("another sequence", lambda blob: _with(blob, 15 + 8, "<i", 1)),
        ("a huge number of cells", lambda blob: _with(blob, 11, "<I", 2**31)),
        ("v_trans of 2", lambda blob: _with(blob, 15 + 60, "<I", 2)),
        ("no layers", lambda blob: _with(blob, 15 + 64, "<I", 0)),
        ("a million layers", lambda blob: _with(blob, 15 + 64, "<I", 10**6)),
        ("rows of 2**63 bytes", lambda blob: _with(blob, 15 + 72, "<Q", 2**63)),
        ("rows of no bytes", lambda blob: _with(blob, 15 + 72, "<Q", 0)),
        ("a type that is none", lambda blob: _with(blob, 15 + 68, "<i", -1)),
    ],
)
def test_what_contradicts_itself_is_an_error(what, change):
    blob = toy_blob(ROWS, 0, range(5))
    parse(blob)
    with pytest.raises(CorruptEntryError):
        parse(change(blob))


@pytest.mark.parametrize(("at", "form", "numbers"), [(0, "<iII", (1, 9, 6)), (8, "<I", (0,)), (8, "<I", (2**30,))])
def test_channels_that_cannot_be_are_an_error(at, form, numbers):
    blob = toy_blob(TRANSPOSED, 0, range(2))
    head = blob.index(struct.pack("<iII", 1, 2, 6))
    with pytest.raises(CorruptEntryError):
        parse(_with(blob, head + at, form, *numbers))


@pytest.mark.parametrize("span", [(1, 0, 2), (2, 1, 1), (2, -1, 1), (3, 0, 2)])
def test_a_payload_that_does_not_hold_what_it_says_is_refused(span):
    payload = cut(parse(toy_blob(ROWS, 0, range(2))), 0, 2)
    with pytest.raises(CorruptEntryError):
        build(ROWS, [Span(payload, *span)])


@layouts
def test_layouts_are_text_and_back(layout):
    assert decode_layout(layout.text) == layout


@given(st.binary(max_size=60) | st.sampled_from([each.text for each in LAYOUTS.values()]).map(lambda text: text[:-1]))
def test_other_texts_are_no_layouts(text):
    with pytest.raises(CorruptEntryError):
        decode_layout(text)


@pytest.mark.parametrize(
    "layout",
    [
        Layout("toy", 5, ROWS.parts),
        Layout("toy", 0, (Part(False, 0, (Sides(2, 1, 6),)),)),
        Layout("toy", 0, (Part(False, 1, (Sides(3, 1, 6),)),)),
        Layout("toy", 0, (Part(False, 1, (Sides(1, 1, 0),)),)),
        Layout("toy", 0, (Part(False, 1, (Sides(1, 1, 2**40),)),)),
        Layout("toy", 0, (Part(True, 1, (Sides(2, 1, 7, 6),)),)),
        Layout("toy", 0, ROWS.parts * 3),
    ],
)
def test_layouts_that_cannot_be_are_refused(layout):
    with pytest.raises(CorruptEntryError):
        decode_layout(layout.text)


def test_the_bytes_of_a_token_are_counted():
    assert ROWS.token_bytes == 22
    assert EXTENDED.token_bytes == 20
    assert len(cut(parse(toy_blob(ROWS, 0, range(9))), 2, 5)) == 66
    assert isinstance(cut(parse(toy_blob(ROWS, 0, range(9))), 2, 5), np.ndarray)
