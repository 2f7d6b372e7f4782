"""lmms-eval's own command line, with our caches in place: `lmstash eval lmms_eval ...`.

`--use_cache FOLDER` names the stash of answers; without it the one in force is used. `--no-cache` runs the harness as
it is, `--clear-cache` removes first what is kept of this run's model and tasks. Answered groups are saved as
`{model}_{task}`, for `load_from_cache`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from lmstash.adapters.lmms_eval.answering.response_cache import ResponseCache, is_padding
from lmstash.adapters.lmms_eval.saved_requests.parts import parent_began, run_of_ranks
from lmstash.adapters.lmms_eval.saved_requests.requests import Request
from lmstash.adapters.lmms_eval.saved_requests.saved import delete_chosen, save_to_cache
from lmstash.caches.responses.requests.asking import namespace_of
from lmstash.errors import InvalidArgumentError
from lmstash.events import logger

NO_CACHE = frozenset({"--no-cache", "--no_cache"})
CLEAR_CACHE = frozenset({"--clear-cache", "--clear_cache"})
_OPTIONS = frozenset({"model", "revision", "refresh"})


def run(argv: Sequence[str], place: str | None = None, **options: Any) -> tuple[int, dict[str, int]]:
    """Run `lmms_eval ARGV`; returns its exit code, and numbers of requests by what became of them.

    Args:
        argv: The harness's arguments, without its name; `--no-cache` and `--clear-cache` are ours.
        place: The stash to use where the arguments name none: a folder or a URI.
        **options: `model=` declares who answers, `revision=` which version of it; `refresh=True` computes all anew.

    Raises:
        InvalidArgumentError: The harness is not installed, or an option is not known here.
    """
    unknown = {name for name, value in options.items() if value is not None} - _OPTIONS
    if unknown:
        raise InvalidArgumentError(f"{', '.join(sorted(unknown))} cannot be used with lmms_eval")
    try:
        import lmms_eval.evaluator as evaluator
        from lmms_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(f"lmms_eval cannot be imported in {sys.prefix}: {error}") from error
    from lmstash.adapters.lmms_eval.installing import installed

    theirs = [each for each in argv if each not in NO_CACHE | CLEAR_CACHE]
    no_cache = any(each in NO_CACHE for each in argv)
    evaluate, before = evaluator.simple_evaluate, sys.argv

    class Launched(RunCache):
        made: ClassVar[list[RunCache]] = []
        clear = any(each in CLEAR_CACHE for each in argv)
        started = time.time()
        declared = options.get("model")
        revision = options.get("revision")
        refresh = bool(options.get("refresh"))

    failed: list[BaseException] = []

    def simple_evaluate(*arguments: Any, **named: Any) -> Any:
        if no_cache:
            named["use_cache"] = None
        elif not named.get("use_cache"):
            named["use_cache"] = place or _default_place()
        delete = bool(named.get("delete_requests_cache"))
        try:
            with installed(Launched, delete_requests=delete):
                return evaluate(*arguments, **named)
        except BaseException as error:
            failed.append(error)
            raise

    code = 0
    sys.argv = ["lmms_eval", *theirs]
    evaluator.simple_evaluate = simple_evaluate
    try:
        cli_evaluate()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
        evaluator.simple_evaluate = evaluate
    counts = {"asked": 0, "served": 0, "computed": 0}
    for each in Launched.made:
        for name, number in each.counts.items():
            counts[name] += number
    return code or int(bool(failed)), counts


class RunCache(ResponseCache):
    """The response cache of one run of the command line.

    Attributes:
        made: Those that were made in this run.
        clear: Whether to remove first what is kept of this run's model and tasks.
        started: When the run began (Unix seconds).
        declared: Who answers, where somebody vouches for it.
        revision: Which version of it.
        refresh: Whether to compute anew and replace what is kept.
    """

    made: ClassVar[list[RunCache]] = []
    clear = False
    started = 0.0
    declared: str | None = None
    revision: str | None = None
    refresh = False

    tasks: frozenset[str] = frozenset()
    part = (0, 1)

    @classmethod
    def create(
        cls,
        cache_root: str | os.PathLike[str],
        *,
        model: Any = "",
        model_args: str | Mapping[str, Any] = "",
        task_dict: Mapping[str, Any] | None = None,
        world_size: int = 1,
        global_rank: int = 0,
    ) -> Self:
        """As `ResponseCache.create`, noting what the run is."""
        options = {"declared": cls.declared, "revision": cls.revision, "refresh": cls.refresh}
        made = cls(cache_root, model=model, model_args=model_args, **options)
        made.tasks = frozenset(_names(task_dict or {}))
        made.part = (global_rank, world_size)
        cls.made.append(made)
        return made

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As `ResponseCache`."""
        super().__init__(*arguments, **options)
        self.groups: dict[tuple[str, Any], list[Request]] = {}
        """Answered requests by task and document."""
        self.counts = {"asked": 0, "served": 0, "computed": 0}
        self._cleared = False
        self._whole = True
        """Whether the model answered all that it was asked."""

    def execute(self, lm: Any, reqtype: str, requests: Sequence[Any]) -> list[Any]:
        """As `ResponseCache.execute`, noting what was answered."""
        if self.clear and not self._cleared:
            self._cleared = True
            self._clear(lm)
        self._whole = False
        answers = super().execute(lm, reqtype, requests)
        self._whole = True
        for each, answer in zip(requests, answers, strict=True):
            if not is_padding(each):
                answered = Request(each.args, getattr(answer, "text", answer), each.task_name, each.doc_id, reqtype)
                self.groups.setdefault((each.task_name, each.doc_id), []).append(answered)
        return answers

    def finalize(self, *, success: bool, dist_backend: str = "accelerate", accelerator: Any = None) -> None:
        """Save the answered groups of each task as `{model}_{task}`, unless the model failed, and let go."""
        stats = self.get_stats()
        asked = stats["hits"] + stats["misses"]
        self.counts = {"asked": asked, "served": stats["hits"], "computed": stats["misses"]}
        if self._whole:
            self._save(success)
        super().finalize(success=success, dist_backend=dist_backend, accelerator=accelerator)

    def _save(self, success: bool) -> None:
        model, run = self.model_name, run_of_ranks(self.part[1], self.started)
        tasks = {name for name, _ in self.groups}
        if success and self.part[1] > 1:
            tasks |= self.tasks  # of a task with few documents a rank may have none: its part is empty
        for task in sorted(tasks):
            groups = [group for (name, _), group in self.groups.items() if name == task]
            save_to_cache(f"{model}_{task}", groups, model=model, task=task, part=self.part, run=run)

    def _clear(self, lm: Any) -> None:
        """Remove what was kept of this model and these tasks before this run began; each rank may do so."""
        met = self._meet(lm)
        started = self.started if self.part[1] == 1 else min(self.started, parent_began())
        fingerprint = met.responses.asker.look()
        if fingerprint is not None:
            removed = self.stash.store.prune(
                lambda entry: entry.meta.get("task") in self.tasks and entry.created < started,
                namespace=namespace_of(fingerprint),
            )
            logger.info("lmstash: cleared %d answers", removed.entries)
        if self.part[0] == 0:
            names = {f"{met.name}_{task}" for task in self.tasks}
            delete_chosen(lambda meta: meta.get("name") in names and meta.get("models") == [met.name])


def _names(task_dict: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for name, task in task_dict.items():
        found += _names(task) if isinstance(task, Mapping) else [str(name)]
    return found


def _default_place() -> str:
    from lmstash.adapters.lmms_eval.saved_requests.saved import default_place

    return default_place()
