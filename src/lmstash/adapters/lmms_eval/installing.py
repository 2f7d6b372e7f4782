"""Our caches in the place of lmms-eval's own, and the harness as it was afterwards."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

from lmstash.adapters.lmms_eval.answering.response_cache import ResponseCache
from lmstash.adapters.lmms_eval.saved_requests.attaching import Building, building
from lmstash.adapters.lmms_eval.saved_requests.invalidating import task_fingerprint
from lmstash.adapters.lmms_eval.saved_requests.saved import delete_cache, delete_chosen, load_from_cache, save_to_cache
from lmstash.errors import LmstashError
from lmstash.events import logger


@contextlib.contextmanager
def installed(response_cache: type[ResponseCache] = ResponseCache, *, delete_requests: bool = False) -> Iterator[None]:
    """Let the harness use lmstash inside a `with` block: `use_cache=` for answers, `cache_requests=` for requests.

    Saved requests are rebuilt when the task, its functions, its data or the few-shot seed change, get their functions
    back, and are read only when the harness is asked to.

    Args:
        response_cache: What `use_cache=` makes.
        delete_requests: Remove the saved requests of each task that is built.
    """
    import lmms_eval.api.task as tasks
    import lmms_eval.caching.cache as theirs
    import lmms_eval.evaluator as evaluator

    build = tasks.Task.build_all_requests
    ours = {"load_from_cache": load_from_cache, "save_to_cache": save_to_cache, "delete_cache": delete_cache}

    @functools.wraps(build)
    def build_all_requests(task: Any, **options: Any) -> Any:
        if delete_requests:
            name = re.compile(rf"requests-{re.escape(task.config.task)}-\w+shot-")  # not those of another task
            delete_chosen(lambda meta: name.match(meta.get("name", "")) is not None)
        now = _building(task, options)
        token = building.set(now)
        try:
            return build(task, **options)
        finally:
            building.reset(token)

    with contextlib.ExitStack() as stack:
        _set(stack, evaluator, "ResponseCache", response_cache)
        _set(stack, tasks.Task, "build_all_requests", build_all_requests)
        for module in (tasks, theirs):
            for name, function in ours.items():
                if hasattr(module, name):
                    _set(stack, module, name, function)
        yield


def _building(task: Any, options: dict[str, Any]) -> Building:
    if not options.get("cache_requests"):
        return Building(task, "", wanted=False)
    try:
        names = ("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "tokenizer_name", "offset")
        told = {name: options.get(name) for name in names}
        if options.get("apply_chat_template"):
            told["chat_template"] = _template(options.get("chat_template"))
        return Building(task, task_fingerprint(task, **told), wanted=True)
    except LmstashError as error:
        logger.warning("lmstash: the requests of %s are not saved: %s", getattr(task.config, "task", task), error)
        return Building(task, "", wanted=False)


def _template(apply: Any) -> str:
    """Return the text of the chat template that a model's method applies.

    Raises:
        LmstashError: It cannot be found.
    """
    owner = getattr(apply, "__self__", None)
    for holder in (owner, getattr(owner, "tokenizer", None), getattr(owner, "processor", None)):
        text = getattr(holder, "chat_template", None)
        if isinstance(text, str):
            return text
    raise LmstashError("nobody can say which chat template they are made with")


def _set(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
