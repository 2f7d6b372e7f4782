"""From the harness's `Instance`s to requests of the responses cache.

A request is the method and its arguments, and nothing of the task: so a change of metric, or another task that asks the
same, finds what is kept. What the harness asks several times (`repeats`) is numbered by occurrence; what it appends to
make ranks even is recognised. A sampled request also names its document and the seed of the sampling: two documents
with one text do not share a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmstash.caches.responses.sampling import is_sampled

_SEEDS = frozenset({"seed", "random_seed"})


class Questions:
    """The requests of one call of the harness, in order, a part at a time."""

    def __init__(self, method: str, instances: Sequence[Any], *, world_size: int, seed: int | None) -> None:
        """Take what is asked.

        Args:
            method: What the harness calls.
            instances: As it passes them: the same object several times asks for several answers.
            world_size: How many ranks evaluate; with more than one, the last instance may be padding.
            seed: What sampling goes out from, if it is known.
        """
        self._method = method
        self._instances = instances
        self._seed = seed
        self._last = instances[-1] if instances and world_size > 1 else None
        self._asked: dict[int, int] = {}
        self._nameless: dict[int, int] = {}

    def part(self, start: int, end: int) -> list[Any]:
        """Return these requests, as the responses cache takes them; parts have to be asked for in order."""
        out: list[Any] = []
        asked, last = self._asked, self._last
        for each in self._instances[start:end]:
            number = asked.get(id(each), 0)
            asked[id(each)] = number + 1
            if number and each is last and each.repeats:
                number %= each.repeats  # padding asks again what was asked already
            out.append(self._request(each, number))
        return out

    def _request(self, instance: Any, number: int) -> dict[str, Any]:
        arguments = instance.args
        request = _plain_request(self._method, arguments)
        if self._method == "generate_until" and len(arguments) > 1 and isinstance(arguments[1], dict):
            options = arguments[1]
            if is_sampled(options):
                request["doc"] = [instance.task_name, instance.doc_id, instance.idx]
                if instance.doc_id is None:
                    request["doc"].append(self._nameless.setdefault(id(instance), len(self._nameless)))
                if self._seed is not None and not _SEEDS & options.keys():  # its own goes out, though it be -1 or None
                    request["seed"] = self._seed
        if number:
            request["repeat"] = number
        return request


def tags_of(instance: Any) -> dict[str, Any]:
    """Return the facts by which an answer is found."""
    return {"task": instance.task_name, "doc": instance.doc_id}


def _plain_request(method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    first = _text(arguments[0]) if arguments else None
    if method == "loglikelihood" and len(arguments) == 2:
        return {"method": method, "context": first, "continuation": _text(arguments[1])}
    if method == "generate_until" and len(arguments) == 2:
        return {"method": method, "context": first, "gen_kwargs": arguments[1]}
    if method == "generate_until" and len(arguments) == 3:
        return {"method": method, "context": first, "gen_kwargs": arguments[1], "media": arguments[2]}
    return {"method": method, "context": first, "more": [_text(each) for each in arguments[1:]]}


def _text(value: Any) -> Any:
    """Return a context as a record can hold it: a chat that the harness has put into JSON is told from a text."""
    if type(value) is str:
        return value
    prompt = getattr(value, "prompt", None)
    if type(prompt) is str and type(value).__name__ == "JsonChatStr":
        return {"chat": prompt}
    return str(value) if isinstance(value, str) else value


def same_arguments(arguments: Sequence[Any]) -> Any:
    """Return something hashable that is equal for equal arguments: what partial results are matched by."""
    if len(arguments) == 2 and isinstance(arguments[1], dict):
        return arguments[0] if _hashable(arguments[0]) else repr(arguments[0]), repr(
            sorted(arguments[1].items(), key=repr)
        )
    return tuple(each if _hashable(each) else repr(each) for each in arguments)


def context_of(arguments: Sequence[Any]) -> Any:
    """Return the first argument as something hashable."""
    if not arguments:
        return None
    return arguments[0] if _hashable(arguments[0]) else repr(arguments[0])


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
