"""From the harness's `Instance`s to requests of the responses cache.

A request is the method and its arguments, and nothing of the task: so a change of metric, or another task that asks the
same, finds what is kept. What the harness asks several times (`repeats`) is numbered by occurrence; what it appends to
make ranks even is recognised. A sampled request also names its document and the seed of the sampling: two documents
with one text do not share a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmstash.caches.responses.requests import Request, read_request
from lmstash.caches.responses.sampling import is_sampled, seed_of
from lmstash.codecs.records import encode_record

_SIMPLE = frozenset((type(None), bool, int, float, str))
_NO_ARGUMENTS: dict[str, Any] = {}
"""None that would matter: what is written so is not sampled."""


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
        self._writer = Writer()

    def part(self, start: int, end: int) -> list[Any]:
        """Return these requests, as the responses cache takes them; parts have to be asked for in order."""
        out: list[Any] = []
        asked, last, plain, method = self._asked, self._last, self._writer.plain, self._method
        for each in self._instances[start:end]:
            number = asked.get(id(each), 0)
            asked[id(each)] = number + 1
            if number and each is last and each.repeats:
                number %= each.repeats  # padding asks again what was asked already
            arguments = each.args
            read = None if number else plain(method, arguments)
            out.append(self._general(each, arguments, number) if read is None else read)
        return out

    def _general(self, instance: Any, arguments: tuple[Any, ...], number: int) -> dict[str, Any]:
        request = _plain_request(self._method, arguments)
        if self._method == "generate_until" and len(arguments) > 1 and isinstance(arguments[1], dict):
            options = arguments[1]
            if is_sampled(options):
                request["doc"] = [instance.task_name, instance.doc_id, instance.idx]
                if instance.doc_id is None:
                    request["doc"].append(self._nameless.setdefault(id(instance), len(self._nameless)))
                if self._seed is not None and seed_of(options) is None:
                    request["seed"] = self._seed
        if number:
            request["repeat"] = number
        return request


class Writer:
    """Writes the usual requests, of texts alone and not sampled, as `read_request` does, in a quarter of its time.

    For the requests of one call: most of them have the same generation arguments, which are written once.
    """

    def __init__(self) -> None:
        self._options: dict[str, bytes | None] = {}

    def plain(self, method: str, arguments: tuple[Any, ...]) -> Request | None:
        """Return a request that is numbered 0, read; None for one that is not of the usual kind."""
        if len(arguments) != 2:
            return None
        first, second = arguments
        if type(first) is not str or first.startswith("data:"):
            return None
        if method == "loglikelihood":
            if type(second) is not str or second.startswith("data:"):
                return None
            middle = b'"continuation":' + encode_record(second)
        elif method == "generate_until" and type(second) is dict:
            known = self._written(second)
            if known is None:
                return None
            middle = known
        else:
            return None
        text = b'{"context":%b,%b,"method":"%b"}' % (encode_record(first), middle, method.encode())
        return Request(text, _NO_ARGUMENTS)

    def _written(self, options: dict[Any, Any]) -> bytes | None:
        """Return generation arguments as they stand in a request; None where asking twice may give two answers."""
        for name, value in options.items():
            if type(name) is not str:
                return None
            if type(value) not in _SIMPLE and (type(value) is not list or not {str}.issuperset(map(type, value))):
                return None  # two that are not equal may look the same
        look = repr(options)
        if look not in self._options:
            sampled = is_sampled(options)
            self._options[look] = None if sampled else read_request({"gen_kwargs": options}).text[1:-1]
        return self._options[look]


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
