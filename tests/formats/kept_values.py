"""What a model computed, put by the library's own write-functions and read back by its own read-functions.

Nothing hangs on a model's weights nor on the version of a package: who computed is a name that is written down here.
`write_...` returns what was put, and `read_...` what is found. Values were kept by these functions: do not change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lmstash.stash import Stash

from .kept import MODEL, fork, ids, numbers

# --- tensors ----------------------------------------------------------------------------------------------------------

IDENTITY = {"layer": 3, "of": ["probe", 1, True, None, 0.5], "ü": "ä"}
_CODES = ("bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "int64", "uint64")


def given_tensors() -> dict[str, torch.Tensor]:
    plain = {name: numbers(number, 3, 2).astype(name) for number, name in enumerate((*_CODES, "float64", "complex64"))}
    out = {name: torch.from_numpy(array) for name, array in plain.items()}
    out["bfloat16"] = torch.from_numpy(numbers(50, 5)).to(torch.bfloat16)
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
        out[name] = torch.arange(8, dtype=torch.uint8).view(getattr(torch, name))
    return out | {"empty": torch.zeros(2, 0), "scalar": torch.tensor(7)}


def write_tensors(stash: Stash) -> Any:
    given = given_tensors()
    assert stash.tensors.put(IDENTITY, given, tags=["probe"], compute_seconds=0.5)
    assert stash.tensors.put("by numpy", {"a": numbers(1, 4)})
    return [given, {"a": numbers(1, 4)}]


def read_tensors(stash: Stash) -> Any:
    return [stash.tensors.get(IDENTITY), stash.tensors.get("by numpy", framework="numpy")]


# --- activations ------------------------------------------------------------------------------------------------------

WIDTH = 4
PROMPTS = [ids(150), fork(80, 64), ids(5, seed=2), [119]]


class AtHand:
    """An extractor whose values are a function of layer, place and token; those of token 119 overflow float16."""

    n_layers = 3
    max_retries = 0

    def __init__(self, *, causal: bool, computes: bool, dtype: torch.dtype = torch.float32) -> None:
        self.causal, self.computes, self.dtype = causal, computes, dtype
        self.name = "kept/causal" if causal else "kept/other"
        self.fingerprint = f"{self.name}, {str(dtype).removeprefix('torch.')}, 1"

    def value(self, prompt: Sequence[int], layer: int) -> torch.Tensor:
        rows = [numbers(1000 * layer + token, WIDTH) * (1e6 if token == 119 else 1) for token in prompt]
        return torch.from_numpy(np.stack(rows)).to(self.dtype)

    def extract(self, batch: Sequence[Sequence[int]], layers: Sequence[int], site: str) -> Any:
        assert self.computes, "a kept value was not found"
        return [[self.value(prompt, layer) for prompt in batch] for layer in layers]


CALLS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"causal": True}, {}, {"layers": [0, 2], "pool": "last"}),
    ({"causal": True}, {}, {"layers": "all", "pool": "last"}),
    ({"causal": True}, {}, {"layers": [1], "pool": "mean"}),
    ({"causal": True}, {}, {"layers": [1], "pool": 0, "site": "mlp_out"}),
    ({"causal": True}, {}, {"pool": "max", "site": "final"}),
    ({"causal": True}, {}, {"layers": [2, 0], "pool": None}),
    ({"causal": True}, {}, {"layers": "all", "pool": None}),
    ({"causal": True}, {"storage_dtype": "float16"}, {"layers": [0, 1], "pool": "last"}),
    ({"causal": True}, {"storage_dtype": "float16", "variant": "mine"}, {"layers": [0, 1], "pool": None}),
    ({"causal": False}, {}, {"layers": [0, 1], "pool": None}),
    ({"causal": False, "dtype": torch.bfloat16}, {}, {"layers": [0, 1], "pool": "last"}),
]
"""Of the extractor, of the cache, of the call."""


def write_activations(stash: Stash) -> Any:
    return [_activations(stash, number, computes=True, tags=["t"]) for number in range(len(CALLS))]


def read_activations(stash: Stash) -> Any:
    return [_activations(stash, number, computes=False, on_miss="error") for number in range(len(CALLS))]


def _activations(stash: Stash, number: int, *, computes: bool, **options: Any) -> Any:
    who, how, call = CALLS[number]
    cache = stash.activations(extractor=AtHand(**who, computes=computes), **how)
    return cache(PROMPTS, progress=False, **call, **options)


def write_described(stash: Stash) -> Any:
    """Descriptions of models, and a name of one that is not described."""
    from lmstash.caches.models import describe_model, name_model

    describe_model(stash.store, described(), "kept/described")
    name_model(stash.store, MODEL, "kept/named")
    return [described().components, dict(described().recorded), [MODEL, described().digest]]


def described() -> Any:
    from lmstash.identity.fingerprint import Fingerprint
    from lmstash.identity.keys import Key

    parts: dict[Any, Any] = {"a": (1, 1.5, b"\x00\xff"), "b": 2**60, "c": {1: "one"}, "d": "\udc80", "e": [None, True]}
    return Fingerprint(Key(parts), {"name": "kept/described", "loss": 0.25})


def read_described(stash: Stash) -> Any:
    from lmstash.caches.models import read_digests, read_models

    firsts = (MODEL.hex()[:16], described().hex[:16])
    found, digests = read_models(stash.store)[firsts[1]], read_digests(stash.store)
    return [found.components, dict(found.recorded), [digests[first] for first in firsts]]


# --- KV ---------------------------------------------------------------------------------------------------------------

SIDES = [(2, 4, torch.float32), (2, 4, torch.float32), (2, 6, torch.float32), (1, 4, torch.bfloat16)]
"""Heads, width and dtype: K of two layers, then V of them."""
SEQUENCES = [ids(150), fork(120, 100), ids(40, seed=2)]


def kv_of(tokens: Sequence[int]) -> list[torch.Tensor]:
    """Each side of a sequence, `[heads, n_tokens, dim]`."""
    out: list[torch.Tensor] = []
    for side, (heads, dim, dtype) in enumerate(SIDES):
        rows = [numbers(100 * side + token + place, heads, dim) for place, token in enumerate(tokens)]
        out.append(torch.from_numpy(np.stack(rows, axis=1)).to(dtype))
    return out


def write_kv(stash: Stash) -> Any:
    from lmstash.caches.kv.harvest import Cutter, Facts, Harvest
    from lmstash.caches.kv.recurrent import write_state

    out: list[Any] = []
    for tokens in SEQUENCES:
        for storage_dtype in (None, "float16"):
            path, match = _kv_match(stash, tokens, storage_dtype)
            sides, harvest = kv_of(tokens), Harvest()
            said = Facts("kept/kv", storage_dtype, False, stash.private, None)
            Cutter(path, match, set(), sides[:2], sides[2:], said, 0.25, harvest).cut()
            stash.store.put_many([*harvest.fresh.values(), *harvest.again.values()])
            rounded = sides if storage_dtype is None else [each.to(torch.float16) for each in sides]
            out.append([len(tokens), *rounded])
    path, _ = _kv_match(stash, SEQUENCES[0], None)
    stash.store.put_many([write_state(path, 2, given_state(), None)])
    return [out, [2, given_state()]]


def given_state() -> dict[str, torch.Tensor]:
    return {"c0.0": torch.from_numpy(numbers(5, 1, 4, 3)), "r0.0": torch.from_numpy(numbers(6, 1, 2, 4, 4))}


def read_kv(stash: Stash) -> Any:
    from lmstash.caches.kv.finding import Finder
    from lmstash.caches.kv.recurrent import find_state

    out: list[Any] = []
    for tokens in SEQUENCES:
        for storage_dtype in (None, "float16"):
            _, match = _kv_match(stash, tokens, storage_dtype)
            assert match.shape is not None
            runs = [torch.cat([s.parts[run][:, :, s.first : s.last] for s in match.spans], 2) for run in range(3)]
            assert [last - first for first, last in match.shape.runs] == [2, 1, 1]
            assert match.shape.sides == tuple((heads, dim, str(dtype)[6:]) for heads, dim, dtype in SIDES)
            out.append([match.n_tokens, *runs[0], runs[1][0], runs[2][0]])
    path, match = _kv_match(stash, SEQUENCES[0], None)
    return [out, list(find_state(Finder(stash.store, stash.writes, path.names.namespace), match, 2))]


def _kv_match(stash: Stash, tokens: Sequence[int], storage_dtype: str | None) -> tuple[Any, Any]:
    from lmstash.caches.kv.finding import Finder
    from lmstash.caches.kv.naming import Names

    names = Names.of(MODEL, stash.salt, storage_dtype)
    path = names.path(np.array(tokens, np.uint32))
    return path, Finder(stash.store, stash.writes, names.namespace).find([path])[0]


# --- log-probabilities ------------------------------------------------------------------------------------------------

CONTEXTS = [ids(1), ids(63), ids(64), ids(65), fork(130, 100)]
HIDDEN = 4


class Says:
    """Stands in for a model in the engine of log-probabilities; a final state is a function of the context's length."""

    name, device, finals = "kept/says", torch.device("cpu"), torch.zeros(1, HIDDEN)
    form, head, max_tokens, vocabulary, n_logits = None, True, None, 120, 2 * HIDDEN
    n_drawn, runs_alone = 0, False

    def __init__(self, *, computes: bool) -> None:
        from lmstash.caches.logprobs.language_model import Reuse

        self.computes, self.reuse = computes, Reuse.INSIDE

    def run(self, feeds: Sequence[Any], starts: Sequence[int], end: int, cache: Any = None) -> torch.Tensor:
        assert self.computes, "a kept value was not found"
        return torch.cat([self.final(length) for feed in feeds for length in feed.reads])

    def final(self, length: int) -> torch.Tensor:
        return torch.from_numpy(numbers(length, 1, HIDDEN))

    def rows(self, finals: torch.Tensor) -> torch.Tensor:
        return torch.cat([finals, finals - 16], 1)

    def picked(self, finals: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.rows(finals).gather(1, tokens[:, None] % self.n_logits)[:, 0]


def write_logprobs(stash: Stash) -> Any:
    """Rows that were computed; those of 16 bits as they come back."""
    out = _logprobs(stash, computes=True)
    out["uint16"] = _in_16_bits(out["uint16"])
    return out


def read_logprobs(stash: Stash) -> Any:
    return _logprobs(stash, computes=False)


def _logprobs(stash: Stash, *, computes: bool) -> dict[str, Any]:
    from lmstash.caches.activations.publish import Publisher
    from lmstash.caches.logprobs.engine import Budgets, Engine
    from lmstash.caches.logprobs.scoring import score
    from lmstash.caches.logprobs.shelf import Owner
    from lmstash.identity.tokens import token_bytes

    out: dict[str, Any] = {}
    for form in ("hidden", "exact", "uint16"):
        model: Any = Says(computes=computes)
        owner = Owner(stash.store, MODEL, model.name, stash.salt, stash.private, None)
        publisher = Publisher(stash.store, lambda: True, replace=False)
        engine = Engine(model, owner, publisher, keep=form, budgets=Budgets(0, 0, 0))
        out[form] = engine.rows([token_bytes(each) for each in CONTEXTS])
        out["score"] = [score(engine, token_bytes(each)) for each in CONTEXTS]
        publisher.flush()
    return out


def _in_16_bits(rows: torch.Tensor) -> torch.Tensor:
    low, high = rows.aminmax(dim=1, keepdim=True)
    step = (high - low) / 65535
    return ((rows - low) / step).round() * step + low


# --- llama.cpp states -------------------------------------------------------------------------------------------------

N_VOCAB = 5
STATES = [("plain", ids(150)), ("plain", fork(120, 100)), ("transposed", ids(70)), ("rest", ids(128))]
STATES += [("rest only", ids(64)), ("rest", fork(130, 100))]
"""The last one is found by a mark, which private stashes have not."""


def _layout(form: str) -> Any:
    from lmstash.caches.states.layout import Layout, Part, Sides

    if form == "rest only":
        return Layout("toy", 0, ())
    if form == "transposed":
        return Layout("toy", 12, (Part(True, 2, (Sides(2, 1, 4), Sides(2, 1, 6, 3))),))
    return Layout("toy", 0, (Part(False, 2, (Sides(2, 1, 6), Sides(2, 8, 5))),))


def token_payload(form: str, place: int, token: int) -> bytes:
    """What is kept of one token, side after side; what a side is made of, channels or one row, does not matter here."""
    return np.frombuffer(numbers(token + place, 100).tobytes(), np.uint8)[: _layout(form).token_bytes].tobytes()


def payload_of(form: str, tokens: Sequence[int]) -> np.ndarray:
    """A sequence's payload as the document has it: for each part extensions, then its sides, channel by channel."""
    layout, rows = _layout(form), [token_payload(form, place, token) for place, token in enumerate(tokens)]
    out, at = b"", 0
    for part in layout.parts:
        pieces = [(layout.ext_bytes, 1)] if layout.ext_bytes else []
        for sides in part.sides:
            pieces += [(sides.row_bytes, sides.channels or 1)] * sides.count
        for n_bytes, channels in pieces:
            unit = n_bytes // channels
            for channel in range(channels):
                first = at + channel * unit
                out += b"".join(row[first : first + unit] for row in rows)
            at += n_bytes
    return np.frombuffer(out, np.uint8)


def rest_of(tokens: Sequence[int]) -> bytes:
    return numbers(len(tokens), 30).tobytes()


def scores_of(tokens: Sequence[int]) -> np.ndarray:
    return np.stack([numbers(token + place, N_VOCAB) for place, token in enumerate(tokens)])


def write_states(stash: Stash) -> Any:
    from lmstash.caches.states.blob import Span, build

    out: list[Any] = []
    for form, tokens in STATES[: 5 if stash.private else 6]:
        payload, rest = payload_of(form, tokens), rest_of(tokens) if form.startswith("rest") else b""
        spans = [Span(payload, len(tokens), 0, len(tokens))] if len(payload) else []
        blob, rows = build(_layout(form), spans, rest=rest), scores_of(tokens)

        def take(first: int, last: int, rows: np.ndarray = rows) -> np.ndarray:
            return rows[first:last]

        assert _states(stash, form).put(tokens, blob, seconds_per_token=0.25, scores=take if form == "plain" else None)
        out.append([len(tokens), np.array(blob), rows if form == "plain" else None])
    return out


def read_states(stash: Stash) -> Any:
    out: list[Any] = []
    for form, tokens in STATES[: 5 if stash.private else 6]:
        states = _states(stash, form)
        longer = tokens if stash.private else [*tokens, 7, 8, 9]
        loaded = states.load(states.match(longer), n_vocab=N_VOCAB if form == "plain" else 0)
        assert loaded is not None, form
        out.append([loaded.n_tokens, loaded.blob, loaded.scores])
        if form in ("plain", "transposed"):
            assert states.n_sequences() >= sum(each == form for each, _ in STATES)
    return out


def _states(stash: Stash, form: str) -> Any:
    from lmstash.caches.states.cache import Memory, States
    from lmstash.identity.fingerprint import Fingerprint
    from lmstash.identity.keys import Key

    memory = Memory(0 if form == "rest only" else 1, form.startswith("rest"))
    fingerprint = Fingerprint(Key({"kind": "kept state", "form": form}), {"name": f"kept/{form}"})
    return States(stash.store, fingerprint, memory, salt=stash.salt, private=stash.private)
