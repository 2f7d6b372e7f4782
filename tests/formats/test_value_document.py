"""`docs/format.md` is enough to read what models computed: by its tables, with nothing of the code."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from typing import Any

import numpy as np
import pytest
import torch

import lmstash

from . import kept_answers, kept_values
from .document import array, fits, read_tensors, tables
from .kept import ids, numbers
from .kept_kinds import Kept, entries, of


@pytest.fixture(scope="module")
def kept() -> list[Kept]:
    """Values of every kind, plain and private."""
    return entries()


def own_key(arrays: Any) -> bytes:
    return arrays["key"][2]


def token_bytes(tokens: Any) -> bytes:
    return np.array(tokens, "<u4").tobytes()


def digest_of(tokens: bytes) -> bytes:
    return hashlib.sha256(b"lmstash tokens\0\1" + len(tokens).to_bytes(8, "big") + tokens).digest()


def test_every_namespace_is_in_the_table_and_every_row_is_read_here(kept: list[Kept]):
    table = [(row[0].strip("`"), row[2]) for row in tables("Values")[0]]
    words = {"<model>": "[0-9a-f]{16}", "<tokenizer>": "[0-9a-f]{16}", "<name>": "[0-9a-f]{16}"}
    words["<storage>"] = "exact|float16|bfloat16|float32"
    patterns = {name: re.sub(r"<\w+>", lambda found: f"({words[found[0]]})", name) for name, _ in table}
    met = set[str]()
    for namespace in {each.namespace for each in kept}:
        rows = [name for name, pattern in patterns.items() if re.fullmatch(pattern, namespace)]
        assert len(rows) == 1, namespace
        met |= set(rows)
    assert met == {name for name, normative in table if normative == "yes"}


def test_tensors_of_the_users(kept: list[Kept]):
    given = kept_values.given_tensors()
    extended = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ"}
    extended |= {"float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ", "bool": "BOOL", "complex64": "C64"}
    found = [each for each in of(kept, "tensors") if each.facts.get("key") == kept_values.IDENTITY]
    assert len(found) == 1, "the private one does not say"
    arrays, _ = read_tensors(found[0].value)
    assert list(arrays) == list(given)
    for name, tensor in given.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        code = extended.get(dtype) or re.sub(r"(.).*?(\d+)", r"\1\2", dtype).upper()
        expected = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert arrays[name] == (code, tuple(tensor.shape), expected)


def test_pooled_activations(kept: list[Kept]):
    table = tables("Activations")[0]
    rows: dict[Any, list[np.ndarray]] = {}
    for each in of(kept, "activations"):
        arrays, metadata = read_tensors(each.value)
        if "layers" not in arrays or len(arrays["value"][1]) != 2:
            continue
        fits(arrays, table)
        said = each.components
        assert own_key(arrays) == each.key
        assert said["layers"] == array(arrays["layers"]).tolist()
        assert metadata.get("dtype") == (None if said["storage"] == "exact" else "float32")
        for layer, row in zip(said["layers"], array(arrays["value"]), strict=True):
            name = each.facts["name"], said["site"], said["pool"], said["storage"], said["tokens"], layer
            rows.setdefault(name, []).append(row)
    n_read = 0
    for (who, how, call), result in zip(kept_values.CALLS, given_activations(), strict=True):
        if call["pool"] is None:
            continue
        name = "kept/causal" if who["causal"] else "kept/other"
        for prompt, values in zip(kept_values.PROMPTS, result, strict=True):
            for layer, value in zip(layers_of(call), values, strict=True):
                pool = {0: "first"}.get(call["pool"], call["pool"])
                asked = name, call.get("site", "block_out"), pool, how.get("storage_dtype", "exact")
                found = rows[(*asked, digest_of(token_bytes(prompt)), layer)]
                assert len(found) == 2, "plain and private"
                for row in found:
                    assert np.array_equal(row.astype(np.float64), value.double().numpy())
                    n_read += 1
    assert n_read == 2 * 4 * (2 + 3 + 1 + 1 + 1 + 2 + 2)


def given_activations() -> Any:
    return kept_values.write_activations(lmstash.open("memory://"))


def layers_of(call: dict[str, Any]) -> list[int]:
    if call.get("site") == "final":
        return [0]
    return [0, 1, 2] if call["layers"] == "all" else call["layers"]


def test_raw_activations(kept: list[Kept]):
    table = tables("Activations")[0]
    raw: dict[bytes, tuple[Kept, Any]] = {}
    for each in of(kept, "activations"):
        arrays, _ = read_tensors(each.value)
        if "layers" in arrays and len(arrays["value"][1]) == 3:
            fits(arrays, table)
            assert each.components["pool"] is None
            assert own_key(arrays) == each.key
            assert ("tokens" in arrays) != ("tokens_digest" in arrays)
            digest = digest_of(arrays["tokens"][2]) if "tokens" in arrays else arrays["tokens_digest"][2]
            assert each.components["tokens"] == digest
            raw[each.key] = each, arrays
    prefixes: dict[Any, np.ndarray] = {}
    plain_ones = {key: found for key, found in raw.items() if "tokens" in found[1]}
    for each, arrays in plain_ones.values():
        tokens, before = array(arrays["tokens"]).tolist(), each
        while before.parent:
            before, beside = plain_ones[before.parent]
            tokens = array(beside["tokens"]).tolist() + tokens
        said = each.components
        assert said["start"] == len(tokens) - len(array(arrays["tokens"]))
        for layer, values in zip(said["layers"], array(arrays["value"]), strict=True):
            prefixes[each.facts["name"], said["storage"], tuple(tokens), layer] = values
    for (who, how, call), result in zip(kept_values.CALLS, given_activations(), strict=True):
        if call["pool"] is not None:
            continue
        name, storage = ("kept/causal" if who["causal"] else "kept/other"), how.get("storage_dtype", "exact")
        for prompt, values in zip(kept_values.PROMPTS, result, strict=True):
            ends = [*range(64, len(prompt), 64), len(prompt)] if who["causal"] else [len(prompt)]
            for layer, value in zip(layers_of(call), values, strict=True):
                parts = [prefixes[name, storage, tuple(prompt[:end]), layer] for end in ends]
                assert np.array_equal(np.concatenate(parts).astype(np.float64), value.double().numpy())
    hidden = [found for key, found in raw.items() if key not in plain_ones]
    same = {(e.facts["name"], json.dumps(e.facts["id"])): a["value"] for e, a in plain_ones.values()}
    assert len(hidden) == len(plain_ones)
    for each, arrays in hidden:
        assert same[each.facts["name"], json.dumps(each.facts["id"])] == arrays["value"]


def test_activations_by_text(kept: list[Kept]):
    found = 0
    for each in of(kept, "activations"):
        arrays, _ = read_tensors(each.value)
        if "text_digest" in arrays:
            fits(arrays, tables("Activations by text")[0])
            assert own_key(arrays) == each.key
            assert arrays["text_digest"][2] == digest_of(kept_answers.TEXT.encode("utf-32-le"))
            assert each.components["by"] == "text"
            assert np.array_equal(array(arrays["value"]), numbers(20 + each.components["layer"], 6, 4))
            found += 1
    assert found == 2


def test_kv_pieces(kept: list[Kept]):
    layout, _ = tables("KV pieces")
    pieces: dict[bytes, tuple[Kept, Any, Any]] = {}
    for each in of(kept, "kv"):
        if each.facts["id"].get("kind") != "kv" and "components" in each.facts["id"]:
            arrays, metadata = read_tensors(each.value)
            fits(arrays, layout)
            assert own_key(arrays) == each.key
            pieces[each.key] = each, arrays, metadata
    for hidden in (False, True):
        for storage in ("exact", "float16"):
            for tokens in kept_values.SEQUENCES:
                assert_kv(pieces, tokens, hidden, storage)


def assert_kv(pieces: Any, tokens: list[int], hidden: bool, storage: str) -> None:
    parent, read = b"", []
    for start in range(0, len(tokens), 64):
        block = tokens[start : start + 64]
        [key] = [
            key
            for key, (each, arrays, metadata) in pieces.items()
            if each.parent == parent
            and each.components["storage"] == storage
            and ("digest" in arrays) == hidden
            and int(metadata["n"]) == len(block)
            and is_over(each, arrays, block)
            and "shape" in metadata
        ]
        read.append(sides_of(pieces, key))
        parent = key
    for side, given in enumerate(kept_values.kv_of(tokens)):
        found = np.concatenate([block[side] for block in read], axis=1)
        expected = given if storage == "exact" else given.to(torch.float16)
        assert np.array_equal(found.astype(np.float64), expected.double().numpy())


def is_over(each: Kept, arrays: Any, block: list[int]) -> bool:
    data = token_bytes(block)
    if "tokens" in arrays:
        return arrays["tokens"][2] == data
    after = bytes.fromhex(each.components["after"])
    head = b"lmstash kv tokens 1\0" + after + struct.pack("<I", len(block))
    return arrays["digest"][2] == hashlib.sha256(head + data).digest()


def sides_of(pieces: Any, key: bytes) -> list[np.ndarray]:
    each, arrays, metadata = pieces[key]
    runs, skip = json.loads(metadata["shape"]), int(metadata["skip"])
    assert [run[3] for run in runs] == ["float32", "float32", "bfloat16"]
    sides = [side for number, run in enumerate(runs) for side in array(arrays[f"part{number}"])[: run[0]]]
    assert len(sides) == sum(run[0] for run in runs)
    if not skip:
        assert "base" not in arrays
        return sides
    base, beside, _ = pieces[arrays["base"][2]]
    assert base.parent == each.parent
    assert array(beside["tokens"])[:skip].tolist() == array(arrays["tokens"])[:skip].tolist()
    first = sides_of(pieces, base.key)
    return [np.concatenate([one[:, :skip], other], axis=1) for one, other in zip(first, sides, strict=True)]


def test_recurrent_states(kept: list[Kept]):
    states = [each for each in of(kept, "kv") if each.facts["id"].get("site") == "state"]
    assert len(states) == 2
    keys = {each.key for each in kept}
    for each in states:
        arrays, _ = read_tensors(each.value)
        fits(arrays, tables("Recurrent states")[0])
        assert each.facts["id"]["tokens"] == 128
        assert each.parent in keys
        for name, tensor in kept_values.given_state().items():
            assert np.array_equal(array(arrays[name]), tensor.numpy())


def test_log_probabilities(kept: list[Kept]):
    layout, sites = tables("Log-probabilities")
    dtypes = {row[0].strip("`"): row[1] for row in sites}
    model, seen = kept_values.Says(computes=True), set[Any]()
    for each in of(kept, "logprobs"):
        arrays, _ = read_tensors(each.value)
        fits(arrays, layout)
        site, n_tokens = each.components["site"], int(array(arrays["n_tokens"])[0])
        assert dtypes[site] in ("float", arrays["value"][0])
        assert own_key(arrays) == each.key
        context = kept_values.CONTEXTS[-1] if n_tokens > 65 else ids(n_tokens)
        last = context[(n_tokens - 1) // 64 * 64 : n_tokens]
        if "tokens" in arrays:
            assert array(arrays["tokens"]).tolist() == last + [0] * (64 - len(last))
        else:
            assert arrays["tokens_digest"][2] == digest_of(token_bytes(last))
        value, final = array(arrays["value"]), model.final(n_tokens)
        row = model.rows(final)[0].numpy()
        if site == "hidden":
            assert np.array_equal(value, final[0].numpy())
        elif site == "exact":
            assert np.array_equal(value, row)
        elif site == "uint16":
            least, step = array(arrays["range"])
            assert np.abs(least + value * step - row).max() <= step
        else:
            start = n_tokens - len(last)
            said = [
                float(model.rows(model.final(start + n))[0, last[n] % 8]) if start + n else 0.0
                for n in range(len(last))
            ]
            assert value.tolist() == said + [0.0] * (64 - len(last))
        seen.add((site, "tokens" in arrays))
    assert seen == {(site, hidden) for site in dtypes for hidden in (False, True)}
