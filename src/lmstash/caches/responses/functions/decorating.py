"""`@responses.cached`: what a function returned, kept under its name, its code and its arguments."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from lmstash.caches.between_runs import listed, never_the_same
from lmstash.caches.responses.answers.shelf import Unkept
from lmstash.caches.responses.functions.changes import changed, files_named
from lmstash.caches.responses.functions.content import Content
from lmstash.caches.responses.functions.looks import Code, Look
from lmstash.caches.responses.functions.memos import Memos
from lmstash.caches.responses.functions.sampling_in_code import SamplingInCode
from lmstash.caches.responses.requests.asking import KIND
from lmstash.caches.responses.requests.encoding import ARGUMENTS, EXACT, NUMBERS
from lmstash.caches.responses.requests.sampling import is_row, note, seed_of
from lmstash.errors import InvalidArgumentError
from lmstash.events import MissReason
from lmstash.identity.code.owners import owner_of

if TYPE_CHECKING:
    from lmstash.caches.responses.answers.shelf import Tags
    from lmstash.caches.responses.cache import Responses

_ARGUMENT: Final = (
    "lmstash: %s changes its argument %s, so that what it answers is not kept: an answer from the cache would not "
    "change it. Have it change a copy, and return what your program goes on with"
)
_OTHER: Final = (
    "lmstash: %s, which %s goes by, changes while it computes, so that %s. If it changes no answer (a counter, a "
    "memo), say harmless=%s"
)
_STALE: Final = (
    "lmstash: %s remembers results (functools.lru_cache) from before something changed that they hang on, so that what "
    "%s answers is not kept: call %s.cache_clear(), or start anew"
)
_TOO_DEEP: Final = "it leads to objects within objects without end. Put a function of your own around it"
_NOT_KEPT: Final = "what it answers is not kept: an answer from the cache would not change it"
_ANOTHER: Final = "the next call is another one and may not be found again"
_BY_CHANCE: Final = (
    "lmstash: calls of %s are not cached where its code may ask a model for answers by chance, as `%s` does (%s): %s"
)
_SAYS_SAMPLING: Final = NUMBERS | ARGUMENTS | {"do_sample", "seed", "random_seed"}


def decorate(
    cache: Responses,
    fn: Callable[..., Any],
    *,
    tags: Tags | Callable[..., Tags | None] | None = None,
    harmless: Sequence[str] = (),
    ttl_seconds: float | None = None,
) -> Callable[..., Any]:
    """Return `fn` so that each call is computed once: see `Responses.cached`.

    Raises:
        InvalidArgumentError: No function whose result can be kept.
    """
    if isinstance(fn, staticmethod | classmethod | property):
        kind = type(fn).__name__
        raise InvalidArgumentError(f"put @responses.cached under @{kind}, next to the function itself")
    again = functools.partial(decorate, cache, tags=tags, harmless=harmless, ttl_seconds=ttl_seconds)
    if isinstance(fn, MethodType):
        return MethodType(again(fn.__func__), fn.__self__)
    if isinstance(fn, functools.partial):
        return functools.partial(again(fn.func), *fn.args, **fn.keywords)
    if not isinstance(fn, FunctionType):
        raise InvalidArgumentError(
            f"@responses.cached takes a function written in Python, not {fn!r:.80}: put it under other decorators, "
            "next to the function itself, or give it a method (`responses.cached(client.ask)`)"
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidArgumentError(f"{fn.__qualname__} yields: what it gives cannot be kept. Return a list.")
    calls = Calls(cache, fn, tags, frozenset(harmless), ttl_seconds)
    # The wrappers name `fn` themselves, so that whoever reads their code (as `CodeGraph` does) is led to it.
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await calls.later(fn, args, kwargs)

        return awaited

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        return calls.now(fn, args, kwargs)

    return called


class Calls:
    """The calls of one decorated function. Threads may share it."""

    def __init__(
        self,
        cache: Responses,
        fn: FunctionType,
        tags: Tags | Callable[..., Tags | None] | None,
        harmless: frozenset[str],
        ttl_seconds: float | None,
    ) -> None:
        """Read nothing yet: what the function names may come to be after it."""
        self._cache = cache
        self.asker = cache.asker
        self._fn = fn
        self._tags = tags
        self._harmless = harmless
        self._ttl_seconds = ttl_seconds
        self._signature = inspect.signature(fn)
        self._may_differ = "__wrapped__" in vars(fn) or "__signature__" in vars(fn)
        """Whether the function may see in how a call is written what the signature does not say."""
        self._name = f"{fn.__module__}.{fn.__qualname__}"
        self._has_noted = self._is_too_deep = False
        self._lock = threading.RLock()  # a signal handler may call in the middle of it
        self._running: list[_Run] = []
        package, model = owner_of(inspect.unwrap(fn).__module__), getattr(cache.asker.who, "model", None)
        self._sampling: tuple[list[Code], SamplingInCode | None] = [], None
        self._content = Content(package, self._harmless, model, leaves_settings=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled by libraries that carry a script's functions to other processes."""
        from lmstash.caches.responses.functions.carrying import carried

        return _calls, (carried(self._cache), self._fn, self._tags, self._harmless, self._ttl_seconds)

    def now(self, fn: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call."""
        asked = self._request(fn, args, kwargs)
        if asked is None:
            return fn(*args, **kwargs)
        about = self._about(args, kwargs)

        def compute() -> Any:
            with self._alone(asked) as run:
                answer = fn(*args, **kwargs)
            return answer if self._may_be_kept(asked, run) else Unkept(answer)

        answer = self._cache.get_or_compute(asked.request, compute, tags=about, ttl_seconds=self._ttl_seconds)
        self._note_run(fn)
        return answer.answer if isinstance(answer, Unkept) else answer

    async def later(self, fn: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of a function that is awaited."""
        asked = self._request(fn, args, kwargs)
        if asked is None:
            return await fn(*args, **kwargs)
        about = self._about(args, kwargs)

        async def compute() -> Any:
            with self._alone(asked) as run:
                answer = await fn(*args, **kwargs)
            return answer if self._may_be_kept(asked, run) else Unkept(answer)

        cache, ttl_seconds = self._cache, self._ttl_seconds
        answer = await cache.get_or_compute_async(asked.request, compute, tags=about, ttl_seconds=ttl_seconds)
        self._note_run(fn)
        return answer.answer if isinstance(answer, Unkept) else answer

    @contextlib.contextmanager
    def _alone(self, asked: _Asked) -> Iterator[_Run]:
        """Note whether a call computes beside others: nobody knows then which of them changed something."""
        files = files_named(asked.look)
        run = _Run(files, Memos(self._content, asked.look, asked.named, files), _here())
        try:
            with self._lock:
                others = [each for each in self._running if each.where != run.where]  # else it is called by that one
                self._running.append(run)
                for each in (*others, run) if others else ():
                    each.is_alone = False
            yield run
            run.memos.note()
        finally:
            with self._lock:
                self._running = [each for each in self._running if each is not run]

    def _may_be_kept(self, asked: _Asked, run: _Run) -> bool:
        """Whether a call left all as it was that it goes by; says once what it did not."""
        if run.memos.stale:
            stale = run.memos.stale
            self._cache.store.events.warn_once(f"memos {self._name}", _STALE, listed(stale), self._name, stale[0])
            return False
        if not run.is_alone:
            return True
        first, value = next(iter(asked.named.items()), ("", None))
        try:
            of = first if hasattr(type(value), self._fn.__name__) else ""
            found = changed(self._content, asked.look, asked.named, asked.arguments, run.files, of)
        except Exception:  # said when the function is called next
            return False
        lost = [name for name, made in sorted(found.items()) if not made]
        arguments = [name for name in lost if name in asked.named]
        events = self._cache.store.events
        if arguments:
            events.warn_once(f"arguments {self._name}", _ARGUMENT, self._name, listed(arguments))
        elif found:
            what, so = (lost, _NOT_KEPT) if lost else (sorted(found), _ANOTHER)
            events.warn_once(f"{so} {self._name}", _OTHER, listed(what), self._name, so, what[:5])
        return not lost

    def _note_run(self, fn: FunctionType) -> None:
        """Say, at the first call in this process, what was another one in each of the last runs."""
        if self._has_noted or self._cache.given["private"]:
            return
        self._has_noted = True
        try:
            code, values = self._content.parts_of(fn)
            of = [self._name, os.path.abspath(fn.__code__.co_filename)]
            names = never_the_same(self._cache.store, of, {**code}, values, self.asker.salt)
        except Exception:  # said when the function is called next
            return
        if names:
            self._cache.store.events.warn_once(
                f"runs {self._name}",
                "lmstash: %s, which the code of %s goes by, had new values in each of the last 3 runs, so that what "
                "those kept was not found. If the program makes them anew each time and they change no answer (a time, "
                "a temporary folder), say harmless=%s: nothing in them counts then, so of what holds other settings, "
                "too, name the part (`args.out`)",
                *(listed(names), self._name, names[:5]),
            )

    def _request(self, fn: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Asked | None:
        """Return what a call asks; None, counted as a miss, where that cannot be said or is no call of the function."""
        events = self._cache.store.events
        if self._is_too_deep:
            events.miss(KIND, b"", MissReason.UNSUPPORTED)
            return None
        named = self._named(args, kwargs)
        if named is None:
            return None
        content = self._content
        try:
            code, arguments = content.told(fn, named)
            environment, files = content.environment(arguments), content.files()
            # Said once more where requests say it, so that a call that samples is known for one.
            sampling = {name: value for name, value in arguments.items() if name in _SAYS_SAMPLING}
            found = self._said_of_sampling(content.last(), named)
            note(sampling, found)
            if found and seed_of(sampling) is None:
                self._tell_of_sampling()
        except Exception as error:  # objects may do anything when they are looked at
            if isinstance(error, RecursionError):  # a second's work, and no other the next time
                self._is_too_deep, error = True, _TOO_DEEP
            events.warn_once(f"call {self._name}", "lmstash: calls of %s are not cached: %s", self._name, error)
            events.miss(KIND, b"", MissReason.UNSUPPORTED)
            return None
        rows = {name: value for name, value in named.items() if is_row(name, value)}
        asked = _Asked(content.last(), named, {**arguments})
        request = asked.request = {"function": self._name, "code": code, "arguments": arguments}
        if rows:  # apart, where no one takes a field of it for an argument of the model
            request["doc"] = {name: arguments.pop(name) for name in rows}
        if self._may_differ:
            request["written"] = [len(args), [name for name in kwargs if name not in self._harmless]]
        if environment is not None:
            request["environment"] = environment
        if files is not None:
            request["files"] = files
        if sampling:
            request["options"] = sampling
        return asked

    def _said_of_sampling(self, look: Look, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return by what the code of a call asks for sampling, beside its arguments."""
        codes = [*look.used.values()]
        known, said = self._sampling
        if codes != known:
            said = SamplingInCode(self._fn, [(each.code, each.graph) for each in codes], self._harmless)
            self._sampling = codes, said
        return said.now(named) if said else {}

    def _tell_of_sampling(self) -> None:
        """Say once where the code asks for answers by chance: the call itself may say otherwise."""
        said = self._sampling[1]
        if said is None or said.by is None or self._cache.asker.keep_sampled:
            return
        name, code = said.by.__qualname__, said.by.__code__
        place = f"{os.path.basename(code.co_filename)}, line {code.co_firstlineno}"
        fields = ", ".join(f"{field}={value!r}" for field, value in sorted(said.found.items()))
        self._cache.store.events.warn_once(
            f"by chance {self._name} {name}", _BY_CHANCE, self._name, name, place, fields
        )

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments by name, those of `**kwargs` among them, without those that do not count.

        None where the function will say what is wrong with them.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            # A wrapper may take others than the function within: as they were written.
            return {**self._counting(kwargs), "": args} if self._may_differ and "" not in kwargs else None
        bound.apply_defaults()
        out: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                out[name] = value
            elif value.keys().isdisjoint(self._signature.parameters):
                out |= value
            else:  # two of one name
                out[f"**{name}"] = self._counting(value)
        return self._counting(out)

    def _counting(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return those that count. Of numbers that are named for sampling `0` and `0.0` are the same."""
        counting = {name: value for name, value in arguments.items() if name not in self._harmless}
        for name in counting.keys() & NUMBERS:
            if type(counting[name]) is int and abs(counting[name]) < EXACT:
                counting[name] = float(counting[name])
        return counting

    def _about(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tags | None:
        if not callable(self._tags):
            return self._tags
        try:
            return self._tags(*args, **kwargs)
        except Exception as error:  # a tag is no reason to lose a call
            events = self._cache.store.events
            events.warn_once(f"tags {self._name}", "lmstash: calls of %s have no tags: %r", self._name, error)
            return None


@dataclasses.dataclass(eq=False)
class _Run:
    """A call that computes, and what the files held before that its arguments name."""

    files: dict[str, Any]
    memos: Memos
    where: tuple[int, int]
    """Its thread and task."""
    is_alone: bool = True


@dataclasses.dataclass
class _Asked:
    """What a call asks, and what that was read of."""

    look: Look
    named: dict[str, Any]
    arguments: dict[str, Any]
    request: dict[str, Any] = dataclasses.field(default_factory=dict)


def _here() -> tuple[int, int]:
    try:
        return threading.get_ident(), id(asyncio.current_task())
    except RuntimeError:  # no loop runs
        return threading.get_ident(), 0


def _calls(cargo: dict[str, Any], *about: Any) -> Calls:
    from lmstash.caches.responses.functions.carrying import opened

    return Calls(opened(cargo), *about)
