"""Small stand-ins of the harness's instance and model, so that its cache can be tested where it is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmstash.adapters.lmms_eval import ResponseCache


@dataclass
class Instance:
    """As `lmms_eval.api.instance.Instance` lays it out."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)
    resps: list[Any] = field(default_factory=list)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments

    @property
    def task_name(self) -> str:
        return self.metadata["task"]

    @property
    def doc_id(self) -> int:
        return self.metadata["doc_id"]


class Echo:
    """Answers with what it was asked and shown; notes what it was called for."""

    def __init__(self, prefix: str = "", batch_size: int = 2, **settings: Any) -> None:
        self.prefix = prefix
        self.batch_size = batch_size
        self.settings = settings
        self.task_dict: dict[str, Any] = {}
        self.calls: list[list[Any]] = []
        self.n_asked = 0

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        self.calls.append(list(requests))
        self.n_asked += len(requests)
        return [self.answer(each) for each in requests]

    def answer(self, request: Any) -> Any:
        return f"{self.prefix}{request.args[0]} -> {len(self.see(request))}"

    def see(self, request: Any) -> Any:
        function = next(each for each in request.args if callable(each))
        doc_id, task, split = request.args[-3:]
        return function(self.task_dict[task][split][doc_id])

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        self.n_asked += len(requests)
        return [(-float(len(str(each.args[0]))), each.args[1] == "yes") for each in requests]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        self.n_asked += len(requests)
        return [[f"{each.args[0]} 1", f"{each.args[0]} 2"] for each in requests]


class Task:
    """As a task of the harness, with its documents and the functions that its configuration names."""

    def __init__(self, docs: list[dict[str, Any]], **config: Any) -> None:
        self.docs = docs
        self.config: dict[str, Any] = {
            "doc_to_text": lambda doc: doc["question"],
            "doc_to_visual": lambda doc: doc.get("images", []),
            "generation_kwargs": {"max_new_tokens": 8, "until": ["\n"]},
            "repeats": 1,
            **config,
        }

    def requests(self, rank: int = 0, world_size: int = 1, chat: bool = False) -> list[Instance]:
        out = []
        for doc_id in range(rank, len(self.docs), world_size):
            context = self.config["doc_to_text"](self.docs[doc_id])
            kwargs = dict(self.config["generation_kwargs"])
            where = (doc_id, "mini", "test")
            if chat:
                arguments = (context, self.config["doc_to_messages"], kwargs, *where)
            else:
                arguments = (context, kwargs, self.config["doc_to_visual"], *where)
            out.append(Instance("generate_until", arguments, 0, {"task": "mini", "doc_id": doc_id, "split": "test"}))
        return [each for each in out for _ in range(self.config["repeats"])]


def questions(n: int = 10, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"Q{k}", **more} for k in range(n)]


def evaluate(
    place: Any,
    lm: Any,
    task: Task,
    *,
    model: Any = "echo",
    model_args: Any = "",
    rank: int = 0,
    world_size: int = 1,
    chat: bool = False,
    watch: Callable[[ResponseCache], None] | None = None,
    **options: Any,
) -> tuple[list[Any], int]:
    """Run one evaluation as the harness does; returns the answers, and how many requests the model computed."""
    lm.task_dict["mini"] = {"test": task.docs}
    cache = ResponseCache(place, model=model, model_args=model_args, **options)
    before = lm.n_asked
    try:
        answers = cache.execute(lm, "generate_until", task.requests(rank, world_size, chat))
        if watch is not None:
            watch(cache)
    finally:
        cache.finalize(success=True)
    return answers, lm.n_asked - before
