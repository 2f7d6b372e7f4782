"""`Responses` against a plain dict, through whatever may happen to a store."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import lmstash
from lmstash.caches.responses import MISSING
from lmstash.stash import Stash

REQUESTS = [
    {"p": "a"},
    {"p": "b"},
    {"p": "a", "n": 1},
    {"p": "a", "n": True},
    ["a"],
    ("a",),
    "a",
    {"p": "a", "temperature": 0},
]
MODELS = ["m", "n"]
TASKS = ["gsm8k", "gsm8k_cot", "mmlu", None]
numbers = st.integers(0, len(REQUESTS) - 1)
models = st.sampled_from(MODELS)


class ResponsesAndDict(RuleBasedStateMachine):
    """What is kept is known; after damage it may be gone, but never another answer."""

    compress = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lmstash-"))
        self.kept: dict[tuple[str, int], tuple[Any, str | None]] = {}
        self.doubtful: set[tuple[str, int]] = set()
        self.drawn = 0
        self.stash: Stash
        self._open()

    def _open(self) -> None:
        self.stash = lmstash.open(self.folder, capacity_bytes="50MB")
        self.caches = {model: self.stash.responses(model=model, compress=self.compress) for model in MODELS}

    def _new(self) -> Any:
        self.drawn += 1
        return {"answer": (self.drawn, "long enough to be found " * 3)}

    def _keep(self, model: str, number: int, answer: Any, task: str | None) -> None:
        self.kept[model, number] = answer, task
        self.doubtful.discard((model, number))

    @rule(model=models, number=numbers, task=st.sampled_from(TASKS))
    def put(self, model: str, number: int, task: str | None) -> None:
        answer = self._new()
        assert self.caches[model].put(REQUESTS[number], answer, tags={"task": task} if task else None)
        self._keep(model, number, answer, task)

    @rule(model=models, number=numbers)
    def get_or_compute(self, model: str, number: int) -> None:
        answer = self._new()
        got = self.caches[model].get_or_compute(REQUESTS[number], lambda: answer)
        self._check(model, number, got, answer, None)

    @rule(model=models, chosen=st.lists(numbers, max_size=5), batch=st.integers(1, 3), refresh=st.booleans())
    def map(self, model: str, chosen: list[int], batch: int, refresh: bool) -> None:
        made = {number: self._new() for number in chosen}
        by_request = {repr(REQUESTS[number]): made[number] for number in chosen}
        got = self.caches[model].map(
            [REQUESTS[number] for number in chosen],
            lambda requests: [by_request[repr(each)] for each in requests],
            batch_size=batch,
            tags=lambda _request: {"task": "mapped"},
            refresh=refresh,
        )
        for number, each in zip(chosen, got, strict=True):
            if refresh:
                assert each == made[number]
                self._keep(model, number, each, "mapped")
            else:
                self._check(model, number, each, made[number], "mapped")

    def _check(self, model: str, number: int, got: Any, new: Any, task: str | None) -> None:
        known = self.kept.get((model, number))
        if known is not None and (model, number) not in self.doubtful:
            assert got == known[0]
        elif known is not None and got == known[0]:
            self.doubtful.discard((model, number))
        else:
            assert got == new
            self._keep(model, number, got, task)

    @rule(model=models, pattern=st.sampled_from(["gsm8k", "gsm8k*", "mm?u", "mapped", "none"]), dry=st.booleans())
    def prune(self, model: str, pattern: str, dry: bool) -> None:
        likes = {
            "gsm8k": {"gsm8k"},
            "gsm8k*": {"gsm8k", "gsm8k_cot"},
            "mm?u": {"mmlu"},
            "mapped": {"mapped"},
            "none": set(),
        }
        gone = {place for place, (_, task) in self.kept.items() if place[0] == model and task in likes[pattern]}
        removed = self.caches[model].prune(task=pattern, dry_run=dry)
        if not gone & self.doubtful:
            assert removed.entries == len(gone)
        if not dry:
            for place in gone:
                del self.kept[place]
                self.doubtful.discard(place)

    @rule(model=models)
    def find(self, model: str) -> None:
        found = {str(each.answer) for each in self.caches[model].find()}
        known = {place: str(answer) for place, (answer, _) in self.kept.items() if place[0] == model}
        assert found <= set(known.values())
        assert {said for place, said in known.items() if place not in self.doubtful} <= found

    @rule(model=models, number=numbers)
    def expire(self, model: str, number: int) -> None:
        assert self.caches[model].put(REQUESTS[number], self._new(), ttl_seconds=-1.0) in (True, False)
        self.kept.pop((model, number), None)
        self.doubtful.discard((model, number))

    @rule()
    def reopen(self) -> None:
        self.stash.close()
        self._open()

    @rule(at=st.floats(0, 1), bit=st.integers(0, 7))
    def damage(self, at: float, bit: int) -> None:
        self.stash.close()
        for path in sorted((self.folder / "segments").iterdir()):
            data = bytearray(path.read_bytes())
            if data:
                data[min(int(at * len(data)), len(data) - 1)] ^= 1 << bit
                path.write_bytes(data)
        self.doubtful |= set(self.kept)
        self._open()

    @invariant()
    def nothing_answers_for_another(self) -> None:
        for model in MODELS:
            for number, got in enumerate(self.caches[model].get_many(REQUESTS)):
                known = self.kept.get((model, number))
                if known is None:
                    assert got is MISSING
                elif got is MISSING:
                    assert (model, number) in self.doubtful
                else:
                    assert got == known[0]

    def teardown(self) -> None:
        self.stash.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Compressed(ResponsesAndDict):
    """The same, compressed."""

    compress = True


TestResponses = ResponsesAndDict.TestCase
TestResponses.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestCompressed = Compressed.TestCase
TestCompressed.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
