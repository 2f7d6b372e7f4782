"""From the harness's `Instance`s to requests of the responses cache.

A request is the method and its arguments, and nothing of the task: so a change of metric, or another task that asks the
same, finds what is kept. What the harness asks several times (`repeats`) is numbered by occurrence; what it appends to
make ranks even is recognised. A sampled request also names its document and the seed of the sampling: two documents
with one text do not share a sample. Where one call asks for several samples of a prompt, they are one request, which
names all of them (see `draws`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmstash.adapters.lm_eval.asking.draws import Place
from lmstash.adapters.lm_eval.generators import asks_for_sampling

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
        self._sampled: set[int] = set()
        self._drawn: dict[int, dict[str, Any]] = {}
        self.places: dict[int, Place] = {}
        """Of the requests that are drawn with others, by number."""
        if method == "generate_until":
            self._find_draws()

    def part(self, start: int, end: int) -> list[Any]:
        """Return these requests, as the responses cache takes them; parts have to be asked for in order.

        The same object stands for each of those that are drawn together.
        """
        out: list[Any] = []
        for number, each in enumerate(self._instances[start:end], start):
            drawn = self._drawn.get(number)
            out.append(self._request(number, each, self._occurrence(each)) if drawn is None else drawn)
        return out

    def _occurrence(self, instance: Any) -> int:
        """Count the how-manieth time this is asked."""
        number = self._asked.get(id(instance), 0)
        self._asked[id(instance)] = number + 1
        if number and instance is self._last and instance.repeats:
            number %= instance.repeats  # padding asks again what was asked already
        return number

    def _find_draws(self) -> None:
        prompts: dict[Any, list[int]] = {}
        for number, each in enumerate(self._instances):
            if asks_for_sampling(each):
                self._sampled.add(number)
                prompts.setdefault(_prompt_of(each), []).append(number)
        for numbers in prompts.values():
            if len(numbers) == 1:
                continue
            samples = [(id(self._instances[number]), self._occurrence(self._instances[number])) for number in numbers]
            index = {each: place for place, each in enumerate(dict.fromkeys(samples))}
            if len(index) == 1:  # the rest is padding
                self._asked.pop(samples[0][0])
                continue
            n_of: dict[int, int] = {}
            for instance, _ in index:
                n_of[instance] = n_of.get(instance, 0) + 1
            by_id = {id(self._instances[number]): self._instances[number] for number in numbers}
            request = _plain_request(self._method, self._instances[numbers[0]].args)
            request["docs"] = [[*self._document(by_id[each]), n_samples] for each, n_samples in n_of.items()]
            self._add_seed(request, self._instances[numbers[0]])
            for number, each in zip(numbers, samples, strict=True):
                self._drawn[number] = request
                self.places[number] = Place(index[each], len(index))

    def _request(self, number: int, instance: Any, occurrence: int) -> dict[str, Any]:
        request = _plain_request(self._method, instance.args)
        if number in self._sampled:
            request["doc"] = self._document(instance)
            self._add_seed(request, instance)
        if occurrence:
            request["repeat"] = occurrence
        return request

    def _document(self, instance: Any) -> list[Any]:
        found = [instance.task_name, instance.doc_id, instance.idx]
        if instance.doc_id is None:
            found.append(self._nameless.setdefault(id(instance), len(self._nameless)))
        return found

    def _add_seed(self, request: dict[str, Any], instance: Any) -> None:
        if self._seed is not None and not _SEEDS & instance.args[1].keys():  # its own goes out, though it be -1 or None
            request["seed"] = self._seed


def _prompt_of(instance: Any) -> Any:
    """Return what is equal for instances that ask the same; where that cannot be said, for the same instance."""
    try:
        return same_arguments(instance.args)
    except Exception:  # whatever other people's arguments do when they are printed
        return id(instance)


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
