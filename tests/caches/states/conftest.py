"""Toy states: what a token's K/V are is a function of all tokens before it, so a wrong one cannot pass for right."""

import hashlib
import struct

import numpy as np
import pytest

from lmstash.caches.states.cache import States
from lmstash.caches.states.layout import Layout, Part, Sides
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

ROWS = Layout("toy", 0, (Part(False, 2, (Sides(2, 1, 6), Sides(2, 8, 5))),))
TRANSPOSED = Layout("toy", 0, (Part(True, 2, (Sides(1, 1, 4), Sides(1, 1, 8), Sides(2, 1, 12, 6))),))
EXTENDED = Layout("toy", 12, (Part(False, 1, (Sides(2, 0, 4),)),))
TWO_PARTS = Layout("toy", 0, (Part(True, 1, (Sides(1, 1, 4), Sides(1, 1, 4, 2))), Part(False, 2, (Sides(4, 1, 2),))))
NO_VALUES = Layout("toy", 0, (Part(False, 2, (Sides(2, 1, 6),)),))
LAYOUTS = {"rows": ROWS, "transposed": TRANSPOSED, "extended": EXTENDED, "two parts": TWO_PARTS, "no V": NO_VALUES}


def token_values(seed, ids):
    """Return, for each token, bytes that stand for it and all before it."""
    state = hashlib.sha256(str(seed).encode())
    out = []
    for each in ids:
        state.update(int(each).to_bytes(4, "little"))
        out.append(state.digest())
    return out


def toy_blob(layout, seed, ids, *, sequence=None):
    """Write a blob number by number, as llama.cpp does: slow, and nothing of lmstash."""
    values = token_values(seed, ids)

    def element(token, place, n_bytes):
        return hashlib.shake_128(values[token] + repr(place).encode()).digest(n_bytes)

    name = layout.arch.encode()
    out = struct.pack("<I", len(name)) + name if sequence is None else struct.pack("<Ii", 0xAF143CD8, sequence)
    for number, part in enumerate(layout.parts):
        out += struct.pack("<II", 1, len(ids))
        for position in range(len(ids)):
            out += struct.pack("<iI", position, 1)
            out += element(position, ("ext", number), layout.ext_bytes)
            out += struct.pack("<i", sequence or 0)
        if not len(ids):
            continue
        out += struct.pack("<II", int(part.v_trans), part.n_layers)
        side = 0
        for alike in part.sides:
            for _ in range(alike.count):
                if alike.channels:
                    unit = alike.row_bytes // alike.channels
                    out += struct.pack("<iII", alike.ggml_type, unit, alike.channels)
                    for channel in range(alike.channels):
                        for token in range(len(ids)):
                            out += element(token, (number, side), alike.row_bytes)[channel * unit :][:unit]
                else:
                    out += struct.pack("<iQ", alike.ggml_type, alike.row_bytes)
                    for token in range(len(ids)):
                        out += element(token, (number, side), alike.row_bytes)
                side += 1
    return out


@pytest.fixture
def tokens():
    """Token ids of a prompt; the same start for the same seed."""

    def make(n_tokens, seed=0):
        return np.random.default_rng(seed).integers(0, 50_000, 4096)[:n_tokens].tolist()

    return make


@pytest.fixture
def model_named():
    def make(name="toy"):
        return Fingerprint(Key({"kind": "toy", "name": name}), {"name": name})

    return make


@pytest.fixture
def states_in(model_named):
    def make(store, name="toy", **options):
        return States(store, model_named(name), **options)

    return make
