"""`CachedLM`: any `LM` of the harness, asked only what it has not answered before."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from lmstash.adapters.lm_eval.asking.answers import is_kept, plain
from lmstash.adapters.lm_eval.asking.draws import Draws, Place
from lmstash.adapters.lm_eval.asking.partials import Hook
from lmstash.adapters.lm_eval.asking.questions import Questions, tags_of
from lmstash.adapters.lm_eval.asking.ranks import most_of_all, must_be_even
from lmstash.adapters.lm_eval.asking.running import run
from lmstash.adapters.lm_eval.generators import Generators
from lmstash.adapters.lm_eval.imported import ImportedAnswers
from lmstash.adapters.lm_eval.under_way import Call
from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.adapters.lm_eval.who.made_anew import made_anew
from lmstash.adapters.lm_eval.who.vouching import Vouched
from lmstash.caches.responses.answers.shelf import MISSING
from lmstash.caches.responses.cache import Responses
from lmstash.caches.responses.requests.asking import Asked
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.events import MissReason
from lmstash.identity.fingerprint import Fingerprint

if TYPE_CHECKING:
    from lmstash.stash import Stash

logger = logging.getLogger("lmstash")
_AT_ONCE = 1024
"""So many are looked up at once."""


@dataclass(slots=True)
class Counts:
    """What happened to the requests of one `CachedLM`."""

    asked: int = 0
    hits: int = 0
    """Found under their own names."""
    imported: int = 0
    """Found among what was taken over from a database of the harness."""
    repeated: int = 0
    """Asked twice in one call, and computed once; padding of ranks, too."""
    computed: int = 0
    filled: int = 0
    """Computed again so that all ranks make equally many calls."""

    def __add__(self, other: Counts) -> Counts:
        theirs = asdict(other)
        return Counts(**{name: number + theirs[name] for name, number in asdict(self).items()})

    def as_dict(self) -> dict[str, int]:
        """Return them by name."""
        return asdict(self)


class CachedLM(LM):
    """Any `LM`, with its answers kept in a stash. For one thread, as the harness's models are.

    `simple_evaluate(model=CachedLM(lm, stash), ...)`. A kept answer is served only to the same request to the same
    model; a program that is killed loses at most the batch in flight, and of samples that are drawn together (see
    `draws`) those that are not complete. Everything else is the inner model's own.
    """

    def __init__(
        self,
        lm: LM,
        stash: Stash,
        *,
        model: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        imported: str | None = None,
        keep_sampled: bool = False,
        keep_empty: bool | None = None,
        strict_numerics: bool = False,
        refresh: bool = False,
        harmless: Collection[str] = (),
    ) -> None:
        """Wrap `lm`. Reads its weights once (0.4 s per GB).

        Args:
            lm: The model.
            stash: Where answers are kept.
            model: What you declare the model to be; needed where lmstash cannot look (vLLM, GGUF servers, your own
                class). Two models under one declared name share answers.
            revision: What you declare of a model behind an API: a version, a date.
            variant: Your own name for a difference that lmstash cannot see.
            imported: Use what `lmstash import lm-eval --model NAME` took over under this name, too; default: `model`.
                A model that lmstash cannot see takes `model=` beside it.
            keep_sampled: Keep sampled answers though nobody knows the seed, also those that the model drew unasked.
            keep_empty: Keep empty texts; default: those of models that run in this process.
            strict_numerics: For a local model: torch's version and the device count, too.
            refresh: Compute anew and replace what is kept.
            harmless: Names of the model's attributes that change no answer, besides the known ones: counters, logs.
        """
        self.lm = lm
        self._refresh = refresh
        self._keep_sampled = keep_sampled
        self.stash = stash
        self.counts = Counts()
        self.responses: Responses | None = None
        self._who: Any = None
        self._hook = Hook()
        try:
            options: dict[str, Any] = {"model": model, "revision": revision, "variant": variant}
            self._who = who_answers(lm, strict_numerics=strict_numerics, harmless=frozenset(harmless), **options)
            empty = getattr(self._who, "keeps_empty", False) if keep_empty is None else keep_empty
            self._vouched = Vouched(self._who, stash.store, lm)
            self.responses = stash.responses(
                self._vouched, keep_sampled=keep_sampled, keep_if=lambda answer: is_kept(answer, empty)
            )
        except InvalidArgumentError:
            raise
        except Exception as error:  # of other people's classes that are not made as the harness's are, too
            if stash.store.strict and not isinstance(error, UnsupportedModelError):
                raise
            why = str(error) if isinstance(error, UnsupportedModelError) else f"{type(lm).__qualname__}: {error!r}"
            also = "" if imported is None else " Nor is what was imported: give model= beside imported=."
            stash.store.events.warn_once(
                f"lm_eval {type(lm)} {why}", "lmstash: nothing is cached for this evaluation: %s%s", why, also
            )
        name = imported or model
        self._imported = None if name is None or refresh else ImportedAnswers(stash, name)
        self._hook.on_report = self._reported
        lm.set_cache_hook(self._hook)  # pyright: ignore[reportArgumentType]

    # --- what the harness asks --------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        """As the inner model's."""
        return self._answer("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Any], **options: Any) -> list[float]:
        """As the inner model's."""
        return self._answer("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
        """As the inner model's."""
        return self._answer("generate_until", requests)

    def _answer(self, method: str, instances: Sequence[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(instances)
        names: dict[int, Asked] = {}
        places: dict[int, Place] = {}
        todo = self._kept(method, instances, answers, names, places)
        computed = self._compute(method, instances, Draws(places, names), names, list(todo))
        for numbers, answer in zip(todo.values(), computed, strict=True):
            for number in numbers:
                answers[number] = answer
        return answers

    def _kept(
        self,
        method: str,
        instances: Sequence[Any],
        answers: list[Any],
        names: dict[int, Asked],
        places: dict[int, Place],
    ) -> dict[int, list[int]]:
        """Fill in what is kept, the names of what is not, and the places of what is drawn together.

        Returns, for each request to compute, the numbers of all that ask the same.
        """
        counts, before = self.counts, self.counts.hits
        counts.asked += len(instances)
        todo: dict[int, list[int]] = {}
        by_name: dict[tuple[bytes, Place | None], int] = {}
        for number, each, one in self._looked_up(method, instances, places):
            if one is not MISSING:
                answers[number] = one
                counts.hits += 1
            elif each is None:
                todo[number] = [number]
            elif (name := (each.key, places.get(number))) in by_name:
                todo[by_name[name]].append(number)
                counts.repeated += 1
            else:
                by_name[name] = number
                names[number] = each
                todo[number] = [number]
        if self._imported is not None and names:
            for number, answer in self._imported.find(method, instances, list(names)).items():
                counts.imported += 1
                for each in todo.pop(number):
                    answers[each] = answer
        logger.info("lmstash: %s: %d requests, %d kept", method, len(instances), self.counts.hits - before)
        return todo

    def _looked_up(
        self, method: str, instances: Sequence[Any], places: dict[int, Place]
    ) -> Iterator[tuple[int, Asked | None, Any]]:
        """Yield each request's number, its name (None for what is not cached), and what is kept or `MISSING`.

        Fills in the places before.
        """
        events, responses = self.stash.store.events, self.responses
        if responses is None:
            events.misses([b""] * len(instances), MissReason.UNSUPPORTED)
            yield from ((number, None, MISSING) for number in range(len(instances)))
            return
        model = responses.asker.look()
        seed = self._who.seed() if hasattr(self._who, "seed") else None
        questions = Questions(method, instances, world_size=self.lm.world_size, seed=seed)
        places.update(questions.places)
        drawn: dict[int, tuple[Asked | None, Any]] = {}  # looked up once, so that no two draws are mixed
        for start in range(0, len(instances), _AT_ONCE):
            end = min(start + _AT_ONCE, len(instances))
            part = questions.part(start, end)
            once = {id(each): each for each in part if id(each) not in drawn}
            try:
                # What is asked several times is numbered in the requests; the stash counts for all who use it.
                asked = responses.asker.ask_many(model, list(once.values()), [0] * len(once))
                found = [MISSING] * len(asked) if self._refresh else responses.shelf.read_many(asked)
            except Exception as error:  # a cache does not end an evaluation
                if self.stash.store.strict:
                    raise
                events.warn_once("lm_eval requests", "lmstash: some requests are not cached: %r", error)
                events.misses([b""] * len(once), MissReason.UNSUPPORTED)
                asked, found = [None] * len(once), [MISSING] * len(once)
            looked = dict(zip(once, zip(asked, found, strict=True), strict=True))
            for number, each in enumerate(part, start):
                place = places.get(number)
                if place is None:
                    yield number, *looked[id(each)]
                    continue
                if id(each) not in drawn:
                    drawn[id(each)] = looked[id(each)]
                name, one = drawn[id(each)]
                yield number, name, place.of(one)

    def _compute(
        self, method: str, instances: Sequence[Any], draws: Draws, names: Mapping[int, Asked], todo: list[int]
    ) -> list[Any]:
        """Return the model's answers to the requests of these numbers; keeps each as it comes."""
        n_even: int | None = None
        fill: Any = instances[0] if instances else None
        if self.lm.world_size > 1 and instances:
            most = most_of_all(self.lm, len(todo))
            if must_be_even(self.lm, method):
                n_even = most
                self.counts.filled += most - len(todo)
        if not todo and not n_even:
            return []
        call = next((Call(each.model) for each in names.values()), None)

        def keep(numbers: list[int], values: list[Any], seconds: float) -> None:
            if self.responses is None or (not self._keep_sampled and self._drew(generators)):
                return
            whole = draws.complete([todo[number] for number in numbers], [plain(each) for each in values])
            for n_drawn in {each[2] for each in whole}:
                kept = [(number, value) for number, value, n in whole if n == n_drawn and number in names]
                pairs = [(names[number], tags_of(instances[number]), value) for number, value in kept]
                self._keep(call, pairs, seconds * n_drawn)

        def begin(part: Sequence[Any]) -> None:
            generators.begin(part)
            if call is not None:
                self._vouched.see_what_was_made(call)

        generators = Generators()
        self.counts.computed += len(todo)
        try:
            if call is not None:
                self._vouched.begin(call)
            # What the model may make for its first question is to be seen before the others are asked.
            even = {"fill": fill, "n_even": n_even, "one_first": call is not None and bool(call.may_make)}
            return run(self.lm, self._hook, method, [instances[each] for each in todo], keep=keep, begin=begin, **even)
        finally:
            try:
                if call is not None:
                    self._vouched.end(call)
                    self._say_what_is_new(call.model)
            finally:
                if call is not None:
                    call.is_over = True  # also where its end was interrupted

    def _say_what_is_new(self, model: Fingerprint) -> None:
        """Where nothing was found, name the attributes that may be why, now and each time."""
        settings = model.components.get("settings")
        new = (
            [] if self.counts.hits or self._refresh or not isinstance(settings, dict) else made_anew(self.lm, settings)
        )
        if new:
            self.stash.store.events.warn_once(
                "lm_eval made anew",
                "lmstash: of the model's attributes, %s look like times or ids that each program makes anew. If so, "
                "nothing is found again; where they change no answer, say so: CachedLM(harmless=%s)",
                ", ".join(new),
                new,
            )

    def _drew(self, generators: Generators) -> bool:
        moved = generators.moved()
        if moved:
            self.stash.store.events.warn_once(
                "lm_eval drawn",
                "lmstash: a %s draws at random (from %s) to answer requests that ask for no sampling; what it answers "
                "meanwhile is not kept. Have the requests say so (gen_kwargs: do_sample=True, temperature=...) and it "
                "is kept under its seed; where what is drawn changes no answer, use CachedLM(keep_sampled=True).",
                type(self.lm).__qualname__,
                ", ".join(moved),
            )
        return bool(moved)

    def _keep(self, call: Call | None, pairs: list[Any], seconds: float) -> None:
        if not pairs or self.responses is None or call is None:
            return
        asked, tags, values = zip(*pairs, strict=True)
        try:
            kept = self.responses.shelf.keep(asked, values, tags, seconds, None)
            self._vouched.kept(call, [each for each, one in zip(asked, kept, strict=True) if one is not None])
        except Exception as error:
            if self.stash.store.strict:
                raise
            self.stash.store.events.warn_once("lm_eval keep", "lmstash: answers were not kept: %r", error)

    def _reported(self) -> None:
        if self.responses is not None:
            self._vouched.check_if_due()

    # --- everything else is the inner model's ----------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name == "lm":  # before __init__, as copying does
            raise AttributeError(name)
        return getattr(self.lm, name)

    @property
    def rank(self) -> int:
        """The inner model's."""
        return self.lm.rank

    @property
    def world_size(self) -> int:
        """The inner model's."""
        return self.lm.world_size

    @property
    def device(self) -> Any:
        """The inner model's."""
        return self.lm.device

    @property
    def tokenizer_name(self) -> str:
        """The inner model's."""
        return self.lm.tokenizer_name

    def all_gather(self, tensor: Any) -> Any:
        """As the inner model's."""
        return self.lm.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        """As the inner model's."""
        return self.lm.gather_object(obj, dst=dst)

    def barrier(self) -> None:
        """As the inner model's."""
        self.lm.barrier()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        """As the inner model's."""
        return self.lm.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """As the inner model's."""
        return self.lm.chat_template(chat_template)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Have another hook told what this model reports."""
        self._hook.outer = cache_hook
