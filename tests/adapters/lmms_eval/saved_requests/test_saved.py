"""The seed's request cache: its usage examples, and what it left to be done. Needs nothing of the harness."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import enum
import io
import logging
import math
import pickle
import re
import threading
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lmstash
from lmstash.adapters.lmms_eval import Record, Request, delete_cache, load_from_cache, save_to_cache
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that the harness's variable names."""
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stash() -> Stash:
    """A stash in memory."""
    return lmstash.open("memory://")


def answered(task: str, n: int = 2) -> list[list[Request]]:
    """Groups of requests as an evaluation leaves them."""
    return [
        [Request(arguments=(f"{task} {k}", {"until": ["\n"]}), response=f"answer {k}", task=task)] for k in range(n)
    ]


# --- the seed's usage examples ------------------------------------------------------------------------------------


def test_basic_usage() -> None:
    runs = []

    def run_evaluation(model: str, task: str) -> list[list[Request]]:
        runs.append((model, task))
        return answered(task)

    def evaluate(model_name: str, task_name: str) -> Any:
        cache_key = f"{model_name}_{task_name}"
        cached_results = load_from_cache(cache_key)
        if cached_results is not None:
            requests = cached_results
        else:
            requests = run_evaluation(model_name, task_name)
            save_to_cache(cache_key, requests)
        return requests

    first = evaluate("qwen25vl", "videomme")
    assert evaluate("qwen25vl", "videomme") == first
    assert evaluate("qwen25vl", "mmmu") != first
    assert runs == [("qwen25vl", "videomme"), ("qwen25vl", "mmmu")]


def test_the_variable_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_to_cache("a", [1])
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "custom/cache/path"))
    assert load_from_cache("a") is None
    save_to_cache("a", [2])
    assert (tmp_path / "custom/cache/path").is_dir()
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "cache"))
    assert load_from_cache("a") == [1]
    monkeypatch.delenv("LM_HARNESS_CACHE_PATH")
    assert load_from_cache("a") is None
    save_to_cache("a", [3])
    assert load_from_cache("a") == [3]
    monkeypatch.setenv("LMSTASH_DIR", str(tmp_path / "another default"))
    assert load_from_cache("a") is None
    save_to_cache("a", [4])
    monkeypatch.setenv("LMSTASH_SALT", "another salt")
    assert load_from_cache("a") is None
    monkeypatch.delenv("LMSTASH_SALT")
    assert load_from_cache("a") == [4]
    monkeypatch.delenv("LMSTASH_DIR")
    assert load_from_cache("a") == [3]


def test_cache_management() -> None:
    def fill() -> None:
        for model in ("qwen25vl", "llava"):
            for task in ("videomme", "mmmu"):
                save_to_cache(f"{model}_{task}", answered(task))

    def left() -> set[str]:
        names = {f"{model}_{task}" for model in ("qwen25vl", "llava") for task in ("videomme", "mmmu")}
        return {name for name in names if load_from_cache(name) is not None}

    fill()
    assert delete_cache(key="videomme") == 2
    assert left() == {"qwen25vl_mmmu", "llava_mmmu"}
    fill()
    assert delete_cache(key="qwen25vl") == 2
    assert left() == {"llava_videomme", "llava_mmmu"}
    fill()
    assert delete_cache() == 4
    assert left() == set()


def test_values_without_requests_are_deleted_by_the_convention_of_their_names() -> None:
    save_to_cache("qwen25_vl_video_mme", {"score": 1})
    assert delete_cache("mme_x") == 0
    assert delete_cache("video_mme") == 1
    save_to_cache("anything", [1], model="m/7B", task="t:1")
    assert delete_cache("t:1") == 1
    save_to_cache("anything", [1], model="m/7B", task="t:1")
    assert delete_cache("m/7B") == 1


def test_ab_testing_of_metrics() -> None:
    save_to_cache("model_task", answered("task", 3))
    cached_responses = load_from_cache("model_task")

    def compute_metrics(responses: Any, metric: Any) -> float:
        return sum(metric(request.response) for group in responses for request in group) / len(responses)

    assert compute_metrics(cached_responses, lambda text: float(text == "answer 1")) == pytest.approx(1 / 3)
    assert compute_metrics(cached_responses, lambda text: float(text.startswith("answer"))) == 1.0


def test_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    save_to_cache("model_task", [[Request(arguments=("Q",), response="A"), Request(arguments=("R",), response="B")]])
    cached = load_from_cache("model_task")
    for request_group in cached:
        for request in request_group:
            print(f"Input: {request.arguments}")
            print(f"Response: {request.response}")
    assert capsys.readouterr().out.splitlines() == ["Input: ('Q',)", "Response: A", "Input: ('R',)", "Response: B"]


def test_programmatic_usage() -> None:
    def loop(use_cache: bool) -> Any:
        if use_cache:
            cached = load_from_cache("key")
            if cached:
                return cached
        results = answered("task")
        if use_cache:
            save_to_cache("key", results)
        return results

    assert loop(False) == loop(True) == loop(True)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, 1, 1 << 80, 0.5, "", "text \ud800", b"bytes", [], (), {}, [1, (2, [3])], {1: "a", "1": "b"},
        {"$tuple": [1]}, {1, 2}, frozenset({"a"}), Path("a/b"), datetime.datetime(2026, 1, 2, 3, 4), "x" * 10_000,
        b"y" * 10_000, datetime.date(2026, 1, 2), [[]], OrderedDict(b=1, a=2), defaultdict(list, {"a": [1]}),
        defaultdict(None, a=1), Counter("aab"), deque([1, 2], 3), Decimal("1.10"), datetime.timedelta(1, 2, 3), 1 + 2j,
        bytearray(b"a"), range(1, 9, 2),
    ],
)  # fmt: skip
def test_values_come_back_with_their_types(value: Any, stash: Stash) -> None:
    assert save_to_cache("v", value, stash=stash)
    back = load_from_cache("v", stash=stash)
    assert back == value
    assert type(back) is type(value)


def test_numbers_that_are_none_and_subclasses_come_back_plain(stash: Stash) -> None:
    save_to_cache("v", [math.nan, np.float32(0.5), {Topic.ART: Topic.ART}, Level.LOW], stash=stash)
    back = load_from_cache("v", stash=stash)
    assert math.isnan(back[0])
    assert back[1:] == [np.float32(0.5), {"art": "art"}, 1]
    assert [type(each) for each in (back[1], *back[2], back[2]["art"], back[3])] == [np.float32, str, str, int]


def test_a_dict_with_a_default_goes_on_as_one(stash: Stash) -> None:
    save_to_cache("v", defaultdict(list), stash=stash)
    load_from_cache("v", stash=stash)["new"].append(1)
    save_to_cache("v", defaultdict(lambda: 1, a=2), stash=stash)
    assert load_from_cache("v", stash=stash) == {"a": 2}


def test_media_come_back_by_value_and_are_kept_once(stash: Stash) -> None:
    torch = pytest.importorskip("torch")
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    image = image_module.fromarray(pixels)
    palette = image.convert("P")
    tensor = torch.arange(2000, dtype=torch.bfloat16)
    words = np.array([["a", "bc"], ["d", "e"]])
    requests = [[Request(arguments=("q", image, [palette], {"t": tensor}, words, k))] for k in range(50)]
    assert save_to_cache("m", requests, stash=stash)
    back = load_from_cache("m", stash=stash)
    for k in (0, 49):
        _, same, (mapped,), held, texts, number = back[k][0].arguments
        assert (same.mode, same.size, same.tobytes()) == (image.mode, image.size, image.tobytes())
        assert mapped.convert("RGB").tobytes() == palette.convert("RGB").tobytes()
        assert held["t"].dtype == torch.bfloat16
        assert torch.equal(held["t"], tensor)
        assert texts.tolist() == words.tolist()
        assert number == k
    assert stash.info().physical_bytes < 3 * image.width * image.height * 3 + 50 * 2000  # one copy
    back[0][0].arguments[3]["t"].zero_()
    assert torch.equal(load_from_cache("m", stash=stash)[0][0].arguments[3]["t"], tensor)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
def test_images_of_several_frames_come_back_by_value_at_their_frame(form: str, stash: Stash) -> None:
    image_module = pytest.importorskip("PIL.Image")
    frames = [image_module.new("RGB", (9, 8), (each, 0, 200)) for each in (0, 90, 250)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    image, expected = image_module.open(io.BytesIO(file.getvalue())), image_module.open(io.BytesIO(file.getvalue()))
    if form != "WEBP":  # of which PIL keeps no file once a frame was looked at
        image.seek(1)
    assert save_to_cache("m", [[Request(arguments=("q", image))]], stash=stash)
    back = load_from_cache("m", stash=stash)[0][0].arguments[1]
    assert (type(back), back.n_frames, back.tell()) == (type(image), 3, image.tell())
    for number in (2, 0, 1):
        back.seek(number)
        expected.seek(number)
        assert back.convert("RGB").tobytes() == expected.convert("RGB").tobytes()


def test_what_images_say_beside_their_pixels_comes_back(stash: Stash) -> None:
    image_module = pytest.importorskip("PIL.Image")

    def animated(duration: int) -> Any:
        file = io.BytesIO()
        frames = [image_module.new("RGB", (9, 8), (each, 0, 0)) for each in (0, 90)]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=duration)
        return image_module.open(file)

    def titled(title: str) -> Any:
        image = image_module.new("RGB", (9, 8))
        image.info["title"] = title
        return image

    images = [animated(100), animated(900), titled("a cat"), titled("a dog")]
    assert save_to_cache("m", [[Request(arguments=tuple(images))]], stash=stash)
    back = load_from_cache("m", stash=stash)[0][0].arguments
    assert [each.info["duration"] for each in back[:2]] == [100, 900]
    assert [each.info for each in back[2:]] == [{"title": "a cat"}, {"title": "a dog"}]


class Broken(io.BytesIO):
    """A file that raises what nobody expects once it is armed."""

    armed = False

    def read(self, *given: Any) -> bytes:
        if self.armed:
            raise RuntimeError("connection lost")
        return super().read(*given)


def test_an_image_whose_file_fails_or_is_too_large_here_breaks_nothing(
    stash: Stash, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    frames = [image_module.new("RGB", (90, 80), (each, 0, 0)) for each in (0, 90)]
    file = Broken()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    whole = image_module.open(io.BytesIO(file.getvalue()))
    image = image_module.open(file)
    file.armed = True
    assert not save_to_cache("broken", [[Request(arguments=(image,))]], stash=stash)
    assert save_to_cache("large", [[Request(arguments=(whole,))]], stash=stash)
    monkeypatch.setattr(image_module, "MAX_IMAGE_PIXELS", 10)
    assert load_from_cache("large", stash=stash) is None


def test_an_image_of_several_frames_that_was_drawn_on_is_not_kept(stash: Stash, caplog: Any) -> None:
    image_module = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    frames = [image_module.new("L", (9, 8), each) for each in (0, 90)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    image = image_module.open(file)
    image.load()
    image.paste(50, (0, 0, 3, 3))
    with caplog.at_level(logging.WARNING, "lmstash"):
        assert not save_to_cache("m", [[Request(arguments=("q", image))]], stash=stash)
    assert "keep its frames" in caplog.text
    assert load_from_cache("m", stash=stash) is None
    assert image.getpixel((0, 0)) == 50


def test_media_leave_with_the_last_value_that_holds_them(stash: Stash) -> None:
    shared, own = np.arange(5000), np.arange(6000)
    save_to_cache("a", [shared, own], stash=stash)
    save_to_cache("b", [shared], stash=stash)
    media = "lmms_eval/media"
    assert len(list(stash.store.entries(media))) == 2
    delete_cache("a", stash=stash)
    assert len(list(stash.store.entries(media))) == 1
    assert np.array_equal(load_from_cache("b", stash=stash)[0], shared)
    delete_cache("b", stash=stash)
    assert list(stash.store.entries(media)) == []


def test_a_value_whose_media_were_evicted_is_a_miss(stash: Stash) -> None:
    save_to_cache("a", [np.arange(5000)], stash=stash)
    stash.store.prune(namespace="lmms_eval/media")
    assert load_from_cache("a", stash=stash) is None
    assert stash.stats.misses["gone"] == 1


class Topic(str, enum.Enum):  # noqa: UP042 (of another `str()`)
    ART = "art"


class Level(enum.IntEnum):
    LOW = 1


class Unknown:
    __slots__ = ("__dict__", "slotted")

    def __init__(self) -> None:
        self.word = "w"
        self.inner = [Request(arguments=(1,))]
        self.slotted = (2,)


def visual(doc: Any) -> list[Any]:
    return [doc]


def test_live_objects_are_not_altered_and_unknown_ones_come_back_as_records(stash: Stash) -> None:
    unknown, bound = Unknown(), partial(visual, doc=1)
    request = Request(arguments=("q", visual, bound, unknown, threading.Thread))
    assert save_to_cache("u", [[request]], stash=stash)
    assert request.arguments == ("q", visual, bound, unknown, threading.Thread)
    text, function, made, record, kind = load_from_cache("u", stash=stash)[0][0].arguments
    assert (text, function, made, kind) == ("q", None, None, None)  # outside the harness
    assert isinstance(record, Record)
    assert (record.word, record.slotted, record.inner) == ("w", (2,), [Request(arguments=(1,))])
    assert record.class_name.endswith("Unknown")


def test_what_cannot_be_saved_is_logged_and_breaks_nothing(
    stash: Stash, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert not save_to_cache("v", loop, stash=stash)
    assert "v is not saved" in caplog.text
    assert load_from_cache("v", stash=stash) is None
    monkeypatch.setattr(stash.store, "strict", True)
    with pytest.raises(lmstash.errors.InvalidArgumentError):
        save_to_cache("v", loop, stash=stash)


# --- names, invalidation, room --------------------------------------------------------------------------------------


def test_names_are_exact_and_any_text() -> None:
    save_to_cache("a/b-tokenizerQwen/Qwen2.5", [1])  # a path to the harness, and no such folder
    save_to_cache("a", [2])
    assert load_from_cache("a/b-tokenizerQwen/Qwen2.5") == [1]
    assert load_from_cache("a/b") is None
    assert load_from_cache("a" * 1000) is None


def test_a_fingerprint_invalidates() -> None:
    save_to_cache("a", [1], fingerprint={"prompt": "Q: {}", "seed": 1})
    assert load_from_cache("a", fingerprint={"seed": 1, "prompt": "Q: {}"}) == [1]
    assert load_from_cache("a", fingerprint={"prompt": "Q: {}", "seed": 2}) is None
    assert load_from_cache("a", fingerprint={"prompt": "Q: {}", "seed": True}) is None
    assert load_from_cache("a") == [1]
    save_to_cache("a", [2])
    assert load_from_cache("a", fingerprint={"prompt": "Q: {}", "seed": 1}) is None


def test_a_function_is_its_source_as_a_fingerprint() -> None:
    def compiled(body: str) -> Any:
        scope: dict[str, Any] = {"__name__": "task_utils"}
        exec(f"def doc_to_visual(doc):\n    return {body}", scope)
        return scope["doc_to_visual"]

    save_to_cache("a", [1], fingerprint=compiled("[doc]"))
    assert load_from_cache("a", fingerprint=compiled("[doc]")) == [1]
    assert load_from_cache("a", fingerprint=compiled("[doc, 0]")) is None
    for word, before in (("A", None), ("B", None), ("B", ["B"])):  # and by its attributes, which it may read
        function = compiled("[doc]")
        function.word = word
        assert load_from_cache("a", fingerprint=function) == before
        save_to_cache("a", [word], fingerprint=function)


def weights(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(2, 2)


def test_a_model_counts_by_its_weights_in_a_fingerprint() -> None:
    save_to_cache("a", [1], fingerprint={"model": weights(1), "prompt": "p"})
    assert load_from_cache("a", fingerprint={"model": weights(1), "prompt": "p"}) == [1]
    assert load_from_cache("a", fingerprint={"model": weights(2), "prompt": "p"}) is None


def test_a_tensor_that_a_function_holds_counts_in_a_fingerprint() -> None:
    def holding(tensor: torch.Tensor) -> Any:
        return lambda doc: [doc, tensor]

    save_to_cache("a", [1], fingerprint=holding(torch.ones(2)))
    assert load_from_cache("a", fingerprint=holding(torch.ones(2))) == [1]
    assert load_from_cache("a", fingerprint=holding(torch.zeros(2))) is None


@pytest.mark.parametrize("of", [re.compile("a").sub, "a{}".format, {"a": 1}.get, [1].index, torch.ones(2).mul])
def test_what_a_method_is_bound_to_counts_in_a_fingerprint(of: Any) -> None:
    others = {re.Pattern: re.compile("b").sub, str: "b{}".format, dict: {"a": 2}.get, list: [2].index}
    other = others.get(type(of.__self__), torch.zeros(2).mul)
    save_to_cache("a", [1], fingerprint=of)
    assert load_from_cache("a", fingerprint=of) == [1]
    assert load_from_cache("a", fingerprint=other) is None


class Levels(enum.Enum):
    LOW, HIGH = 1, 2


class Templates(dict[str, str]):
    def __init__(self, style: str) -> None:
        super().__init__(a="b")
        self.style = style


class Prompt(str):
    stop: str


def prompt(stop: str) -> Prompt:
    made = Prompt("Q: {}")
    made.stop = stop
    return made


@dataclasses.dataclass
class Step:
    of: Any


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1, 2}, {1, 3}),
        (frozenset({"a"}), {"a"}),
        (Levels.LOW, Levels.HIGH),
        (1j, 2j),
        ({"timeout": 1}, {"timeout": 2}),
        ({"max_retries": 1}, {"max_retries": 2}),
        (Templates("Q:"), Templates("Question:")),
        (Templates("Q:"), {"a": "b"}),
        (prompt("a"), prompt("b")),
        (collections.defaultdict(list), collections.defaultdict(set)),
        (Step(len), Step(max)),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
        (Namespace(a=1), SimpleNamespace(a=1)),
        (Step(lambda doc: [doc]), Step(lambda doc: doc)),
    ],
)
def test_any_value_may_be_a_fingerprint(one: Any, other: Any) -> None:
    save_to_cache("a", [1], fingerprint={"of": one})
    assert load_from_cache("a", fingerprint={"of": one}) == [1]
    assert load_from_cache("a", fingerprint={"of": other}) is None
    save_to_cache("a", [1], fingerprint=one)
    assert load_from_cache("a", fingerprint=copy.deepcopy(one)) == [1]
    assert load_from_cache("a", fingerprint=other) is None


def test_a_fingerprint_that_holds_itself_is_refused(stash: Stash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stash.store, "strict", True)
    held: dict[str, Any] = {}
    held["a"] = held
    with pytest.raises(InvalidArgumentError, match="holds itself"):
        load_from_cache("a", fingerprint=held, stash=stash)


class Fails:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __hash__ = __repr__  # pyright: ignore[reportAssignmentType]

    @property
    def __dict__(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "fingerprint", [{"prompt": Path("none.txt")}, {object()}, weights(1).forward, Fails(), {"a": [Fails()]}]
)
def test_a_fingerprint_that_cannot_be_read_breaks_nothing(
    stash: Stash, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fingerprint: Any
) -> None:
    monkeypatch.setattr(stash.store, "strict", False)
    assert not save_to_cache("a", [1], fingerprint=fingerprint, stash=stash)
    save_to_cache("a", [1], fingerprint="f", stash=stash)
    assert load_from_cache("a", fingerprint=fingerprint, stash=stash) is None
    assert "a is not looked for" in caplog.text
    assert load_from_cache("a", stash=stash) == [1]
    monkeypatch.setattr(stash.store, "strict", True)
    with pytest.raises(Exception):  # noqa: B017 (whatever it was)
        load_from_cache("a", fingerprint=fingerprint, stash=stash)


@pytest.mark.parametrize("value", [Fails(), [Fails()], {"a": Fails()}, {Path("a"): Fails()}])
def test_objects_that_fail_when_looked_at_break_nothing(stash: Stash, value: Any) -> None:
    assert not save_to_cache("a", value, stash=stash)
    assert load_from_cache("a", stash=stash) is None


def test_a_missing_folder_is_no_error(folder: Path) -> None:
    assert not folder.exists()
    assert delete_cache() == 0
    assert delete_cache("x") == 0
    assert load_from_cache("x") is None


def test_a_folder_that_is_removed_is_made_again(folder: Path) -> None:
    import shutil

    save_to_cache("a", [1])
    shutil.rmtree(folder)
    assert load_from_cache("a") is None
    assert save_to_cache("a", [2])
    assert load_from_cache("a") == [2]


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_old_pickles_are_reported_once_and_never_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    (folder / f"model_task.{'0' * 64}.pickle").write_bytes(pickle.dumps(Bomb()))
    with caplog.at_level(logging.WARNING):
        assert load_from_cache("model_task") is None
        assert load_from_cache("model_task") is None
    assert caplog.text.count(".pickle files") == 1
    assert "model_task.000" in caplog.text
    delete_cache()
    assert (folder / f"model_task.{'0' * 64}.pickle").exists()


def test_a_damaged_value_is_a_miss(stash: Stash) -> None:
    save_to_cache("a", [1], stash=stash)
    (entry,) = stash.store.entries("lmms_eval/saved")
    for bad in (b"", b"\x07", b"\x00\xff\xff\xff\xff", b"\x00\x02\x00\x00\x00{}[1]"):
        stash.store.put(entry.key, bad, namespace="lmms_eval/saved")
        assert load_from_cache("a", stash=stash) is None
    assert stash.stats.misses["damaged"] == 4


def test_room_is_limited_and_the_least_used_goes_first(tmp_path: Path) -> None:
    with lmstash.open(tmp_path / "small", capacity_bytes="8MB") as small:
        for k in range(40):
            save_to_cache(f"v{k}", "x" * 500_000 + str(k), stash=small)
        assert small.info().physical_bytes <= 8 * 2**20
        assert load_from_cache("v39", stash=small) is not None
        assert load_from_cache("v0", stash=small) is None


def test_compression(stash: Stash) -> None:
    pytest.importorskip("zstandard")
    value = [["the same words again " * 500, np.zeros(100_000)]]
    assert save_to_cache("c", value, stash=stash, compress=True)
    assert sum(each.nbytes for each in stash.store.entries()) < 10_000
    back = load_from_cache("c", stash=stash)
    assert back[0][0] == value[0][0]
    assert np.array_equal(back[0][1], value[0][1])


def test_parts_of_ranks_come_back_as_one_in_the_order_of_documents(stash: Stash) -> None:
    for rank in range(2):
        mine = [[Request(arguments=(k,), task="t", doc_id=k)] for k in range(rank, 7, 2)]
        save_to_cache("m_t", mine, stash=stash, part=(rank, 2))
    assert [group[0].doc_id for group in load_from_cache("m_t", stash=stash)] == list(range(7))
    assert delete_cache("t", stash=stash) == 2


def test_two_processes_share(folder: Path) -> None:
    import subprocess
    import sys

    code = "from lmstash.adapters.lmms_eval import *; save_to_cache('other', [(1, 2)])"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert load_from_cache("other") == [(1, 2)]
