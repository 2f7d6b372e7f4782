"""What was answered, saved or taken over, put by the library's own write-functions and read back by its own.

As in `kept_values.py`: `write_...` returns what was put, and `read_...` what is found. Values were kept by these
functions: they are not changed.
"""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmstash.stash import Stash

from .kept import MODEL, ids, numbers

# --- responses --------------------------------------------------------------------------------------------------------

CHAT = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "wie heißt du?"}]}
IMAGE_BYTES = bytes(range(256)) * 40


@dataclass
class Verdict:
    """An answer of a type that is registered."""

    score: float
    why: tuple[str, ...]


class Grade(enum.Enum):
    """Another one."""

    GOOD = "good"


ASKED: list[tuple[Any, Any]] = [
    (CHAT, {"choices": [{"message": {"content": "Ä\n"}, "index": 0}], "usage": None}),
    ({**CHAT, "seed": 7, "temperature": 0.5}, "seeded"),
    (("loglikelihood", "context", " continuation"), (-1.25, True)),
    (["1", 1, 1.0, True, None], [1, 1.0, True, "1", None]),
    ({"prompt": "numbers"}, [float("nan"), float("inf"), float("-inf"), -0.0, 2**80, -(2**70), 1e300]),
    ({"prompt": "texts"}, {"lone": "\udc80", "bytes": b"\x00\xff", "empty": "", 1: "a number", ("a", 2): "a tuple"}),
    ({"prompt": "types"}, [Verdict(0.5, ("a", "b")), Grade.GOOD]),
    ({"prompt": "media", "image": IMAGE_BYTES, "array": numbers(3, 2, 2)}, "seen"),
    ({"prompt": "secret", "api_key": "sk-0123456789", "timeout": 3}, {"$tag": "like one", "nested": [[["deep"]]]}),
    ({"prompt": b"\x00bytes", "top_k": 5, "big": 2**70, "nan": float("nan")}, "odd"),
]
"""Request and answer."""
DRAWN = {"prompt": "a number", "temperature": 1.0}
TAGS = {"task": "kept", "doc": 3, "split": "test", "run": "r1", "user": "u", "mine": [1, 2], "tags": ["a", "b"]}
SQUEEZED = [({"prompt": f"how much is {n} and 1"}, {"answer": f"{n} and 1 make {n + 1}"}) for n in range(4)]


def _responses(stash: Stash) -> Any:
    from lmstash.caches.responses import register

    register(Verdict, name="kept.Verdict")
    register(Grade, name="kept.Grade")
    named = {"base_url": "https://api.example.org/v1/", "revision": "2026-01"}
    return stash.responses("provider/name", **named, keep_sampled=True)


def write_responses(stash: Stash) -> Any:
    responses = _responses(stash)
    requests, answers = zip(*ASKED, strict=True)
    tags = None if stash.private else TAGS
    assert responses.put_many(requests, answers, tags=tags, compute_seconds=2.0) == len(ASKED)
    for occurrence in range(2):
        assert responses.put(DRAWN, f"drawn {occurrence}", occurrence=occurrence)
    assert stash.responses("provider/other", variant="v").put(CHAT, "by name only")
    return [[*map(_plain, answers)], ["drawn 0", "drawn 1"], "by name only", 0 if stash.private else len(ASKED)]


def read_responses(stash: Stash) -> Any:
    responses = _responses(stash)
    drawn = [responses.get(DRAWN, occurrence=occurrence) for occurrence in range(2)]
    by_name = stash.responses("provider/other", variant="v").get(CHAT)
    answers = [_plain(each) for each in responses.get_many([request for request, _ in ASKED])]
    found = list(responses.find(task="kept", doc=3, tag="b", split="te*", run="r1", user="u"))
    return [answers, drawn, by_name, len(found)]


def _plain(answer: Any) -> Any:
    """Say of what is registered what it is made of."""
    if type(answer) is list and type(answer[0]) is Verdict:
        return [["verdict", answer[0].score, answer[0].why], ["grade", answer[1].value, type(answer[1]) is Grade]]
    return answer


def write_squeezed(stash: Stash) -> Any:
    """Compressed answers, with a dictionary that was trained on a thousand others which are not kept."""
    from lmstash.caches.responses.answers.records import encode_answer, pack
    from lmstash.caches.responses.answers.squeezing import Squeezer

    responses = stash.responses("provider/squeezed", compress=True)
    namespace = f"responses/{responses.asker.look().hex[:16]}"
    others = [({"prompt": f"how much is {n} and {n}"}, {"answer": f"{n} and {n} make {2 * n}"}) for n in range(1000)]
    samples = [pack(encode_answer(answer), encode_answer(request)) for request, answer in others]
    Squeezer(stash.store, namespace, stash.salt).squeeze(samples)
    assert responses.put_many(*map(list, zip(*SQUEEZED, strict=True))) == len(SQUEEZED)
    values = stash.store.get_many([each.key for each in stash.store.entries(namespace)])
    assert {value[0] for value in values if value is not None} == {1}, "they are compressed"
    return [answer for _, answer in SQUEEZED]


def read_squeezed(stash: Stash) -> Any:
    return stash.responses("provider/squeezed").get_many([request for request, _ in SQUEEZED])


# --- what lmms-eval's users save --------------------------------------------------------------------------------------


def _image(first: int = 0) -> Any:
    from PIL import Image

    return Image.frombytes("RGB", (4, 3), bytes(range(first, first + 36)))


def _groups() -> list[Any]:
    from lmstash.adapters.lmms_eval import Request

    arguments = ("a question", {"until": ["\n"], "max_new_tokens": 5}, _image())
    about = {"split": "test", "idx": 0}
    return [
        [Request(arguments, f"answer {n}", "task", n, "generate_until", {**about, "repeat": k}) for k in range(2)]
        for n in range(2)
    ]


def odd_values(seed: int = 4) -> dict[str, Any]:
    """Media differ by `seed`, so that they are kept anew."""
    return {
        "media": [IMAGE_BYTES, numbers(seed, 3, 2), np.float64(0.5), np.array(["a", "ü"]), torch.tensor([1.5, seed])],
        "image": _image(seed),
        "types": [(1, 2), {"a", "b"}, frozenset({3}), datetime.date(2026, 1, 2), Path("/a/b"), b"\x00", 1e300, None],
        "times": [datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), datetime.time(3, 4)],
    }


def write_saved(stash: Stash) -> Any:
    from lmstash.adapters.lmms_eval import save_to_cache

    given = {"groups": _groups(), "odd": odd_values(), "packed": odd_values(5)}
    assert save_to_cache("kept_groups", given["groups"], stash=stash, fingerprint=["what it hangs on", 1])
    assert save_to_cache("kept_odd", given["odd"], stash=stash, model="kept", task="odd")
    assert save_to_cache("kept_packed", given["packed"], stash=stash, compress=True)
    for part in range(2):
        assert save_to_cache("kept_parts", _groups()[1 - part : 2 - part], stash=stash, part=(part, 2))
    return given | {"groups": _fields(given["groups"]), "parts": _fields(_groups()), "other": None}


def read_saved(stash: Stash) -> Any:
    from lmstash.adapters.lmms_eval import load_from_cache

    return {
        "groups": _fields(load_from_cache("kept_groups", stash=stash, fingerprint=["what it hangs on", 1])),
        "odd": load_from_cache("kept_odd", stash=stash),
        "packed": load_from_cache("kept_packed", stash=stash),
        "parts": _fields(load_from_cache("kept_parts", stash=stash)),
        "other": load_from_cache("kept_groups", stash=stash, fingerprint=["what it hangs on", 2]),
    }


def _fields(groups: Any) -> Any:
    names = ("arguments", "response", "task", "doc_id", "request_type", "metadata")
    return [[{name: getattr(each, name) for name in names} for each in group] for group in groups]


# --- what lmprobe's users keep ----------------------------------------------------------------------------------------

NAME, TEXT = "kept/lmprobe", "a prompt – of lmprobe's"


def write_lmprobe(stash: Stash) -> Any:
    """Imported tensors, values by text, and what they are found by."""
    from lmstash.adapters.lmprobe.catalog import record_keys, record_write, register
    from lmstash.adapters.lmprobe.imported import (
        ImportedPrompt,
        declare_identity,
        encode_value,
        index_write,
        value_write,
    )
    from lmstash.adapters.lmprobe.layout import hash16
    from lmstash.caches.activations.prompts import Prompt

    store, model_hash, prompt_hash = stash.store, hash16(NAME), hash16(TEXT)
    imported = ImportedPrompt(tuple(imported_tensors()), 6, False, TEXT)
    for name, tensor in imported_tensors().items():
        write = value_write(model_hash, prompt_hash, NAME, name, imported)
        write.value = encode_value(tensor)
        assert store.put_many([write]) == 1
    assert store.put_many([index_write(model_hash, prompt_hash, NAME, imported)]) == 1
    declare_identity(store, NAME, MODEL, how="owner", left_padded=False)
    reading, shape = _facts()
    assert register(store, reading)
    assert register(store, shape)
    context, prompt = _context(stash), Prompt(np.array(ids(6), np.uint32), TEXT)
    [key] = record_keys(NAME, MODEL, None, [prompt_hash])
    assert store.put_many([record_write(key, context, prompt, 6, True)]) == 1
    shelf = _text_shelf(stash, None)
    fresh, _ = shelf.keep([0], [0, 1], [[value] for value in _by_text()], 0.5)
    assert store.put_many(fresh) == 2
    record = [6, None if stash.private else np.array(ids(6), np.uint32), None if stash.private else TEXT]
    return [imported_tensors(), ["owner", MODEL], 6, [NAME, MODEL, 4, 2], [(0,), ("pooled",)], record, _by_text()]


def read_lmprobe(stash: Stash) -> Any:
    from lmstash.adapters.lmprobe.catalog import as_shape, read_records, readings, record_keys
    from lmstash.adapters.lmprobe.imported import declaration, read_index
    from lmstash.adapters.lmprobe.importer import load_imported
    from lmstash.adapters.lmprobe.layout import hash16
    from lmstash.adapters.lmprobe.result import PaddedResult
    from lmstash.adapters.lmprobe.slots import read_facts

    store, model_hash, prompt_hash = stash.store, hash16(NAME), hash16(TEXT)
    declared = declaration(store, model_hash)
    assert declared is not None
    facts = [fact for fact, _ in read_facts(store, [model_hash])[model_hash]]
    [shape] = [as_shape(fact) for fact in facts if fact["what"] == "shape"]
    [reading], index = readings(store, model_hash), read_index(store, model_hash, prompt_hash)
    assert shape is not None
    assert index is not None
    [record] = read_records(store, record_keys(NAME, MODEL, None, [prompt_hash]))
    assert record is not None
    result = PaddedResult([0], 2, 6)
    shelf = _text_shelf(stash, result)
    shelf.load()
    assert shelf.absent() == [], "a kept value was not found"
    values, _ = result.padded(4, torch.float32)
    return [
        load_imported(NAME, TEXT, stash),
        [declared.how, declared.model],
        index.n_tokens,
        [reading.name, reading.model, reading.width, reading.n_layers],
        [shape.layers, shape.kinds],
        [record.n_tokens, record.ids, record.text],
        [values[0, :, 4 * layer : 4 * layer + 4] for layer in range(2)],
    ]


def imported_tensors() -> dict[str, torch.Tensor]:
    pooled = torch.from_numpy(numbers(12, 1, 4)).to(torch.bfloat16)
    return {"layer_0": torch.from_numpy(numbers(11, 6, 4)), "pooled_mean_layer_0": pooled}


def _by_text() -> list[torch.Tensor]:
    return [torch.from_numpy(numbers(20 + layer, 6, 4)) for layer in range(2)]


def _facts() -> tuple[Any, Any]:
    from lmstash.adapters.lmprobe.catalog import Reading, Shape
    from lmstash.adapters.lmprobe.imported import imported_namespace
    from lmstash.adapters.lmprobe.layout import hash16

    reading = Reading(NAME, MODEL, None, True, True, 2, 4, None)
    return reading, Shape(NAME, hash16(NAME), imported_namespace(hash16(NAME)), (0,), ("pooled",))


def _context(stash: Stash) -> Any:
    from lmstash.caches.activations.context import Context

    reading, _ = _facts()
    return Context(stash.store, reading.source(), MODEL, None, stash.salt, stash.private, None)


def _text_shelf(stash: Stash, result: Any) -> Any:
    from lmstash.adapters.lmprobe.source import text_prompts
    from lmstash.adapters.lmprobe.text_shelf import TextShelf

    return TextShelf(_context(stash), text_prompts([TEXT]), [0, 1], result, [None])
