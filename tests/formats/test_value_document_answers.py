"""`docs/format.md` is enough to read states, answers and what was saved: by its tables, with nothing of the code."""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

import lmstash
from lmstash.caches.responses.exporting import export_responses
from lmstash.codecs.compression import compress

from . import kept_answers, kept_values
from .document import array, of_key, plain, read_struct, read_tensors, tables, typed
from .kept import MODEL, ids, told
from .kept_kinds import Kept, entries, of


@pytest.fixture(scope="module")
def kept() -> list[Kept]:
    """Values of every kind, plain and private."""
    return entries()


# --- llama.cpp states -------------------------------------------------------------------------------------------------


def test_llamacpp_states(kept: list[Kept]):
    piece_table, rest_table, _ = tables("llama.cpp states")
    pieces: dict[bytes, Any] = {}
    seen = set[str]()
    rests: list[Kept] = []
    marks: list[Kept] = []
    for each in of(kept, "states"):
        magic = each.value[:8]
        if magic == b"lmstash\x01":
            pieces[each.key] = each, *read_piece(piece_table, each)
        elif magic == b"lmstash\x02":
            head, end = read_struct(rest_table, each.value)
            layout, rest = each.value[end : end + head["layout_bytes"]], each.value[end + head["layout_bytes"] :]
            assert head["key"] == each.key
            assert json.loads(layout)[0] == "toy"
            assert rest == kept_values.rest_of(ids(head["n_tokens"]))
            rests.append(each)
        else:
            marks.append(each)
    [mark] = marks
    assert np.frombuffer(mark.value, "<u4").tolist() == kept_values.STATES[-1][1][128:]
    for each, head, _, _ in pieces.values():
        form, tokens = assert_tokens(each, pieces)
        for place, payload in enumerate(tokens_of(pieces, each.key)):
            start = each.components["start"]
            assert payload == kept_values.token_payload(form, start + place, tokens[start + place])
            seen.add(form)
        assert head["n_tokens"] == each.components["n_tokens"]
        assert head["skip"] == each.components["skip"]
    assert seen == {"plain", "transposed", "rest"}
    assert any(head["skip"] for _, head, _, _ in pieces.values())
    ends = of(kept, "sequences")
    assert len(ends) == 2 * len(kept_values.STATES) - 1
    for end in ends:
        assert end.value == end.parent
        assert end.value in pieces or end.value in {each.key for each in rests}
        assert end.facts["n_tokens"] in {len(tokens) for _, tokens in kept_values.STATES}


def read_piece(table: Any, each: Kept) -> tuple[dict[str, Any], bytes, bytes]:
    """Head, what stands for the tokens, and the rest of the value."""
    head, end = read_struct(table, each.value)
    assert head["key"] == each.key
    assert head["flags"] in (0, 1)
    after = end + (32 if head["flags"] else 4 * head["n_tokens"])
    return head, each.value[end:after], each.value[after:]


def assert_tokens(each: Kept, pieces: Any) -> tuple[str, list[int]]:
    """The sequence that a piece is of, by its tokens or their digest."""
    _, head, said, _ = pieces[each.key]
    form = each.facts["name"].removeprefix("kept/")
    start, n_tokens = each.components["start"], head["n_tokens"]
    for name, tokens in kept_values.STATES:
        data = np.array(tokens[start : start + n_tokens], "<u4").tobytes()
        after = bytes.fromhex(each.components["after"])
        digest = hashlib.sha256(b"lmstash states tokens 1\0" + after + struct.pack("<I", len(data)) + data).digest()
        if name == form and said == (digest if head["flags"] else data) and len(data) == 4 * n_tokens:
            return form, tokens
    raise AssertionError("a piece of no sequence that was put")


def tokens_of(pieces: Any, key: bytes) -> list[bytes]:
    """What a piece holds of each of its tokens, those of its base first: side after side."""
    each, head, _, body = pieces[key]
    first: list[bytes] = []
    if head["skip"]:
        base, beside, _, _ = pieces[head["base"]]
        assert base.parent == each.parent
        assert not beside["skip"] or head["skip"] == head["n_tokens"], "only a pointer's base has one"
        first = tokens_of(pieces, head["base"])[: head["skip"]]
    if head["skip"] == head["n_tokens"]:
        assert body == b""
        return first
    start = len(each.value) - len(body) + head["layout_bytes"]
    _, ext_bytes, parts = json.loads(body[: head["layout_bytes"]])
    padded = (start + 63) // 64 * 64
    assert not any(each.value[start:padded])
    payload, n = each.value[padded:], head["n_tokens"] - head["skip"]
    out, at = [b""] * n, 0
    for _, _, runs in parts:
        sides = [(ext_bytes, 1)] if ext_bytes else []
        sides += [(row, channels or 1) for count, _, row, channels in runs for _ in range(count)]
        for row_bytes, channels in sides:
            unit = row_bytes // channels
            side = payload[at : at + n * row_bytes]
            for token in range(n):
                cells = [side[(channel * n + token) * unit :][:unit] for channel in range(channels)]
                out[token] += b"".join(cells)
            at += n * row_bytes
    assert at == len(payload)
    return first + out


def test_scores(kept: list[Kept]):
    table = tables("llama.cpp states")[2]
    forms = set[int]()
    for each in [*of(kept, "scores"), uncompressed(of(kept, "scores")[0])]:
        head, end = read_struct(table, each.value)
        assert (head["magic"], head["key"], end) == (b"lmstash\x03", each.key, 64)
        shape = head["n_rows"], head["n_vocab"]
        size, body = math.prod(shape), each.value[64:]
        if head["form"] == 1:
            planes = [np.frombuffer(body[: 2 * size], "<u2"), np.frombuffer(body[2 * size : 3 * size], np.uint8)]
            planes.append(np.frombuffer(plain(body[3 * size :]), np.uint8))
            bits = sum(plane.astype("<u4") << shift for plane, shift in zip(planes, (0, 16, 24), strict=True))
            body = np.asarray(bits, "<u4").tobytes()
        rows = np.frombuffer(body, "<f4").reshape(shape)
        start = each.components["start"]
        given = [kept_values.scores_of(tokens)[start : start + shape[0]] for _, tokens in kept_values.STATES[:2]]
        assert any(np.array_equal(rows, one) for one in given)
        forms.add(head["form"])
    assert forms == {0, 1}


def uncompressed(each: Kept) -> Kept:
    """An entry of scores as it is kept where zstandard is not installed."""
    tokens, n_rows = kept_values.STATES[0][1], struct.unpack_from("<I", each.value, 8)[0]
    start = each.components["start"]
    rows = kept_values.scores_of(tokens)[start : start + n_rows]
    value = each.value[:16] + struct.pack("<I", 0) + each.value[20:64] + rows.tobytes()
    return Kept(each.namespace, each.key, each.parent, value, each.facts)


def test_compressed_bytes():
    for size in (1, 2, 4, 8):
        data = bytes(range(251)) * 3
        assert plain(compress(data, element_size=size)) == data


# --- responses --------------------------------------------------------------------------------------------------------


def unpacked(kept: list[Kept], each: Kept) -> tuple[bytes, bytes]:
    """Answer and request of a response, both as bytes."""
    layout, squeezed, _, _ = tables("Responses")
    value = each.value
    if value[0] == 1:
        head, end = read_struct(squeezed, value)
        place = f"dictionaries/{each.namespace.partition('/')[2]}"
        there = [one.value for one in kept if one.namespace == place]
        assert head["dictionary"] in there, "the current one"
        [found] = [data for data in there if hashlib.sha256(data).digest()[:8] == head["dictionary"]]
        dictionary = zstandard.ZstdCompressionDict(found)
        value = zstandard.ZstdDecompressor(dict_data=dictionary).decompress(value[end:])
    head, end = read_struct(layout, value)
    assert head["form"] == 0
    return value[end : end + head["answer_bytes"]], value[end + head["answer_bytes"] :]


def test_responses(kept: list[Kept]):
    found, hidden, requests = [], [], []
    for each in of(kept, "responses"):
        answer, request = unpacked(kept, each)
        (found if request else hidden).append(typed(answer))
        if request:
            requests.append(typed(request))
        assert b"sk-0123456789" not in each.value
    given = [answer for _, answer in kept_answers.ASKED] + ["drawn 0", "drawn 1", "by name only"]
    given[6] = [("object", "kept.Verdict", {"score": 0.5, "why": ("a", "b")}), ("object", "kept.Grade", "good")]
    squeezed = [answer for _, answer in kept_answers.SQUEEZED]
    assert (len(found), as_set(found)) == (len(given + squeezed), as_set(given + squeezed))
    assert (len(hidden), as_set(hidden)) == (len(given), as_set(given))
    asked = [request for request, _ in kept_answers.ASKED]
    assert as_set([asked[2], asked[3], asked[4]]) <= as_set(requests)
    [media] = [each for each in requests if type(each) is dict and each.get("prompt") == "media"]
    assert media["image"][:2] == ("object", "media")
    assert media["image"][2][0] == "bytes"
    assert len(bytes.fromhex(media["array"][2][1])) == 32


def as_set(values: list[Any]) -> set[str]:
    return {json.dumps(told(each)) for each in values}


def test_facts_of_responses(kept: list[Kept]):
    tagged = [each for each in of(kept, "responses") if "task" in each.facts]
    assert len(tagged) == len(kept_answers.ASKED)
    assert all(each.facts == kept_answers.TAGS for each in tagged)
    numbered = [each for each in of(kept, "responses") if "occurrence" in each.facts]
    assert [each.facts["occurrence"] for each in numbered] == [1, 1], "plain and private"


def test_exported_responses():
    members = [row[0].strip("`") for row in tables("Responses")[3]]
    stash, out = lmstash.open("memory://", strict=True), io.StringIO()
    kept_answers.write_responses(stash)
    export_responses(stash.store, out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    values = {each.key: bytes(stash.store.get(each.key) or b"") for each in stash.store.entries("responses/")}
    assert len(rows) == len(values) == len(kept_answers.ASKED) + 3
    for row in rows:
        assert list(row) == members
        answer, request = unpacked([], Kept("", b"", b"", values[bytes.fromhex(row["key"])], {}))
        for name, data in (("answer", answer), ("request", request)):
            assert json.dumps(row[name], ensure_ascii=False, separators=(",", ":")).encode() == data
    [row] = [row for row in rows if row["answer"] == "seeded"]
    told_of = {name: row[name] for name in ("task", "doc", "split", "run", "user", "tags")}
    assert told_of | row["facts"] == kept_answers.TAGS
    assert (row["occurrence"], row["expires"]) == (0, None)


# --- models -----------------------------------------------------------------------------------------------------------


def test_models(kept: list[Kept]):
    values = {each.facts["model"]: (typed(each.value), each.facts) for each in of(kept, "models")}
    said, facts = values[kept_values.described().hex[:16]]
    assert (said["schema"], facts["name"]) == (1, "kept/described")
    parts = {name: of_key(value) for name, value in said["components"].items()}
    assert told(parts) == told(kept_values.described().components)
    assert of_key(said["recorded"]) == {"name": "kept/described", "loss": 0.25}
    assert values[MODEL.hex()[:16]][0] is None
    assert values[MODEL.hex()[:16]][1]["digest"] == MODEL.hex()


# --- what lmms-eval's users save --------------------------------------------------------------------------------------


def media_of(kept: list[Kept]) -> dict[str, list[Any]]:
    """Kept media by kind."""
    kinds = {kind.strip("`") for row in tables("Saved media")[0] for kind in row[0].split(", ")}
    out: dict[str, list[Any]] = {}
    forms = set[bytes]()
    for each in of(kept, "lmms_eval"):
        if each.namespace != "lmms_eval/media":
            continue
        first, kind, content = each.value[:1], each.facts["media"], each.value[1:]
        assert kind in kinds
        data = plain(content) if first == b"z" else content
        forms.add(first)
        if kind == "image":
            (length,) = struct.unpack_from("<I", data)
            value: Any = typed(data[4 : 4 + length]), data[4 + length :]
        elif data[:4] == b"text":
            value = typed(data[4:])
        else:
            value = array(read_tensors(data)[0]["value"])
        out.setdefault(kind, []).append(value)
    assert forms == {b"-", b"z"}
    return out


def test_saved_media(kept: list[Kept]):
    media, given = media_of(kept), kept_answers.odd_values()["media"]
    assert any(np.array_equal(each, given[1]) for each in media["array"] if isinstance(each, np.ndarray))
    assert ["<U1", [2], ["a", "ü"]] in [each for each in media["array"] if isinstance(each, list)]
    assert media["scalar"][0] == given[2]
    assert any(np.array_equal(each, given[4].numpy()) for each in media["tensor"])
    images = [(head["mode"], head["size"], pixels) for head, pixels in media["image"]]
    assert ("RGB", [4, 3], bytes(range(4, 40))) in images


def test_saved_values(kept: list[Kept]):
    layout, members, kinds = tables("Saved values")
    known = {kind.strip("`") for row in kinds for kind in row[0].split(", ")}

    def named(kind: str, value: Any) -> Any:
        assert kind in known
        return kind, value

    saved = [each for each in of(kept, "lmms_eval") if each.namespace == "lmms_eval/saved"]
    bodies: dict[str, list[Any]] = {}
    for each in saved:
        head, end = read_struct(layout, each.value)
        assert head["form"] == 0
        said = typed(each.value[end : end + head["head_bytes"]])
        assert set(said) <= {row[0].strip("`") for row in members}
        assert (said["parts"] > 1) == ("run" in said)
        assert said["packed"] == (each.facts["name"] == "kept_packed")
        assert all(len(bytes.fromhex(name)) == 32 for name in said["media"])
        body = each.value[end + head["head_bytes"] :]
        bodies.setdefault(each.facts["name"], []).append(typed(plain(body) if said["packed"] else body, named))
    assert {name: len(found) for name, found in bodies.items()} == {
        "kept_groups": 2,
        "kept_odd": 2,
        "kept_packed": 2,
        "kept_parts": 4,
    }
    [group, _], _ = bodies["kept_groups"]
    kind, fields = group[1]
    assert kind == "request"
    assert (fields["response"], fields["doc_id"], fields["metadata"]["repeat"]) == ("answer 0", 0, 1)
    assert fields["arguments"][:2] == ("a question", {"until": ["\n"], "max_new_tokens": 5})
    assert fields["arguments"][2][0] == "image"
    odd = bodies["kept_packed"][0]
    assert odd["times"] == bodies["kept_odd"][0]["times"]
    assert odd["media"][0] == kept_answers.IMAGE_BYTES
    types = odd["types"]
    assert types[:3] == [(1, 2), ("set", ["a", "b"]), ("frozenset", [3])]
    assert types[3:6] == [("date", "2026-01-02"), ("path", "/a/b"), b"\x00"]
    assert odd["times"] == [("datetime", "2026-01-02T03:04:05+00:00"), ("time", "03:04:00")]
    [facts] = {json.dumps(each.facts) for each in saved if each.facts["name"] == "kept_odd"}
    assert json.loads(facts) == {"name": "kept_odd", "tasks": ["odd"], "models": ["kept"]}


# --- what lmprobe's and mellea's users keep ---------------------------------------------------------------------------


def test_what_lmprobes_users_keep(kept: list[Kept]):
    listed = {row[0].strip("`").partition("/<")[0]: row[1] for row in tables("What lmprobe's users keep")[0]}
    members: dict[str, list[dict[str, Any]]] = {}
    for each in of(kept, "lmprobe"):
        kind = "/".join(each.namespace.split("/")[:2])
        said = typed(each.value)
        assert all(f"`{name}`" in listed[kind] for name in said), (kind, said)
        members.setdefault(kind, []).append(said)
    assert members.keys() == listed.keys()
    assert {said["what"] for said in members["lmprobe/models"]} == {"reading", "shape"}
    [record] = members["lmprobe/prompts"]
    assert np.frombuffer(record["ids"], "<u4").tolist() == ids(6)
    assert record["text"] == kept_answers.TEXT
    [index] = members["lmprobe/imports"]
    assert index["tensors"] == list(kept_answers.imported_tensors())
    assert members["lmprobe/declarations"] == [{"model": MODEL, "how": "owner", "left_padded": False}]
    imported = [each for each in of(kept, "activations") if each.namespace.startswith("activations/lmprobe-")]
    assert {each.facts["tensor"] for each in imported} == set(kept_answers.imported_tensors())
    for each in imported:
        assert each.facts["prompt"] == hashlib.sha256(kept_answers.TEXT.encode()).hexdigest()[:16]
        given = kept_answers.imported_tensors()[each.facts["tensor"]].float().numpy()
        assert np.array_equal(array(read_tensors(each.value)[0]["value"]), given)


def test_values_of_mellea():
    pytest.importorskip("transformers")
    from lmstash.adapters.mellea.persisting import Shelf

    stash = lmstash.open("memory://", strict=True)
    torch.manual_seed(0)
    Shelf(stash, torch.nn.Linear(2, 2)).put("k", {"a": [torch.tensor([1.0, 2.0]), (3, None)]})
    [entry] = stash.store.fetch_many([each.key for each in stash.store.entries("tensors/user")])
    assert entry is not None
    assert entry.meta["tags"] == ["mellea"]
    arrays, _ = read_tensors(bytes(entry.value))
    said = typed(arrays["record"][2])
    assert said["form"] == 1
    value = ["list", [["tensor", 0, "cpu"], ["tuple", [["plain", 3], ["plain", None]]]]]
    assert said["value"] == ["dict", [[["plain", "a"], value]]]
    assert array(arrays["0"]).tolist() == [1.0, 2.0]
