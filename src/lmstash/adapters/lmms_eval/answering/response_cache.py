"""`ResponseCache`: in the place of lmms-eval's own, answers that are kept as they come, by what was really asked."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmstash.adapters.lm_eval.asking.chunks import Chunks
from lmstash.adapters.lm_eval.generators import states
from lmstash.adapters.lmms_eval.answering.asking import Reader, Unnameable
from lmstash.adapters.lmms_eval.answering.at_once import batch_size_of
from lmstash.adapters.lmms_eval.answering.chance import read_all, reading_draws
from lmstash.adapters.lmms_eval.answering.instances import is_padding, length_of, repeats_of, tags_of
from lmstash.adapters.lmms_eval.answering.met import Met, Seen
from lmstash.adapters.lmms_eval.answering.types import is_worth_keeping, register_types
from lmstash.adapters.lmms_eval.who.drawing import says_sampling, unexplained
from lmstash.adapters.lmms_eval.who.model import ModelObject
from lmstash.adapters.lmms_eval.who.sampling import samples_by_default
from lmstash.caches.drawing import moved
from lmstash.caches.responses import MISSING
from lmstash.caches.responses.who import Declared, named
from lmstash.errors import InvalidArgumentError
from lmstash.events import MissReason, logger
from lmstash.identity.fingerprint import Fingerprint
from lmstash.stash import Stash

_WINDOW = 1024
"""So many requests are read and looked up before the first of them is computed."""
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|/\S+|\d+")
"""What of a reason is about one document."""


class ResponseCache:
    """What lmms-eval calls `ResponseCache`: `create`, `execute`, `finalize`, `get_stats`, `close`.

        lmms_eval.evaluator.ResponseCache = ResponseCache           # then use_cache="FOLDER" and --use_cache FOLDER
        lmms_eval.evaluator.evaluate(lm, tasks, response_cache=ResponseCache("FOLDER"))

    An answer is kept under the model (see `model.ModelObject`) and all that it was asked (see `asking.Reader`), and as
    soon as the chunk that it is in has been answered: a run that is killed loses at most that chunk, whatever it ran as
    and however it is started again. Ranks and runs write into one stash; nothing is merged.

    Not kept: empty answers, and sampled ones without a seed, which each run samples anew.

    Used by one thread, as the harness does; any number of processes.

    Attributes:
        stash: Where answers are kept.
    """

    def __init__(
        self,
        stash: Stash | str | os.PathLike[str] | None = None,
        *,
        model: Any = None,
        model_args: str | Mapping[str, Any] | None = None,
        revision: str | None = None,
        declared: str | None = None,
        harmless: Sequence[str] = (),
        keep_sampled: bool = False,
        chunk_size: int | None = None,
        refresh: bool = False,
        urls: str = "refuse",
    ) -> None:
        """Open where answers are kept; nothing is read yet.

        Args:
            stash: A stash, or the folder of one; default: as `lmstash.open()` finds it.
            model: The name that the harness makes the model by, or the model object.
            model_args: What it is made with.
            revision: What is declared of a model that computes elsewhere: a version, a date.
            declared: A name that you vouch for, for a model that nobody can identify: all answers are that one's.
            harmless: Names of the model's attributes, arguments and globals that change no answer, besides the known
                ones; `random` for what it draws from random generators.
            keep_sampled: Keep sampled answers that have no seed, too, each under its number among its repeats.
            chunk_size: Requests that the model gets at once; default: one of its batches (or what it asks a server for
                side by side), or more where batches are quick, as many as take two seconds, or where more at once help.
            refresh: Compute anew and replace what is kept.
            urls: What becomes of requests that show media by URL, whose content may change: `refuse` (they are not
                cached), `content` (fetched and hashed at each look-up) or `trust` (the URL stands for it).
        """
        from lmstash.adapters.lmms_eval.places import open_place

        self._owns = not isinstance(stash, Stash)
        self.stash = stash if isinstance(stash, Stash) else open_place(stash)
        self._name = model if isinstance(model, str) else None
        self._arguments = _parsed(model_args)
        self._revision = revision
        self._declared = declared
        self._harmless = frozenset(harmless)
        self._keep_sampled = keep_sampled
        self._chunk_size = chunk_size
        self._refresh = refresh
        self._urls = urls
        self._met: Met | None = None
        self._hits = 0
        self._computed = 0

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
    ) -> ResponseCache:
        """Make one as the harness does.

        Args:
            cache_root: A folder, or a file `FOLDER/name.db`, which stands for its folder.
            model: The model's name, or the model object.
            model_args: What the harness makes it with.
            task_dict: The tasks; they are not part of what is kept.
            world_size: Of a distributed run.
            global_rank: Of this process in it.
        """
        return cls(cache_root, model=model, model_args=model_args)

    def execute(self, lm: Any, reqtype: str, requests: Sequence[Any]) -> list[Any]:
        """Return an answer for each request, in their order; calls the model with those that are not kept.

        Args:
            lm: The harness's model.
            reqtype: Its method, for instance `generate_until`.
            requests: The harness's `Instance`s. The same object several times is a request that is repeated.

        Raises:
            InvalidArgumentError: The model did not return one answer for each request.
        """
        register_types()
        met = self._meet(lm)
        drew = met.seen.drew
        try:
            return self._execute(met, reqtype, requests)
        finally:  # a signal handler may ask while what another call has computed is being kept
            met.seen.drew = drew

    def _execute(self, met: Met, reqtype: str, requests: Sequence[Any]) -> list[Any]:
        lm, look = met.lm, met.responses.asker.look
        if _is_sharded(lm):  # its ranks compute together, so all have to be called equally often
            self.stash.store.events.warn_once(
                "sharded model", "lmstash: a model that is sharded over ranks is called for every request"
            )
            return self._passed_on(lm, reqtype, requests)
        repeats = repeats_of(requests)
        reader = Reader(lm, reqtype)
        answers: list[Any] = [None] * len(requests)
        for start in range(0, len(requests), _WINDOW):
            if look() is None:  # as without a cache: its answers may hang on their order
                answers[start:] = self._passed_on(lm, reqtype, requests[start:])
                break
            numbers = range(start, min(start + _WINDOW, len(requests)))
            self._window(met, reqtype, reader, requests, repeats, numbers, answers)
        if met.seen.reordered and look() is None:
            self.stash.store.events.warn_once(
                "asked in another order",
                "lmstash: before it was seen that answers of %s may hang on what was asked before, it was asked the "
                "longest contexts first. The results of this run may not be those without a cache: run it again.",
                met.name,
            )
        return answers

    def finalize(self, *, success: bool, dist_backend: str = "accelerate", accelerator: Any = None) -> None:
        """Log what was served, and let go of the stash. Nothing is left to be merged, also after a failure."""
        stats = self.get_stats()
        logger.info(
            "lmstash: %d answers served, %d computed (%.1f %% served)",
            stats["hits"],
            stats["misses"],
            100 * stats["hit_rate"],
        )
        self.close()

    def get_stats(self) -> dict[str, Any]:
        """Return counts by the names that lmms-eval gives them, and lmstash's own under `lmstash`."""
        info = self.stash.info()
        kept = sum(each.entries for each in info.namespaces if each.namespace.startswith("responses/"))
        asked = self._hits + self._computed
        own = self.stash.stats
        return {
            "hits": self._hits,
            "hits_shared": 0,
            "misses": self._computed,
            "skipped_non_deterministic": own.misses[MissReason.SAMPLED],
            "hit_rate": self._hits / max(1, asked),
            "total_cached_entries": kept,
            "lmstash": own.as_dict(),
        }

    def close(self) -> None:
        """Let go of the stash; answers that were returned are kept already."""
        if self._owns:
            self.stash.close()
        else:
            self.stash.flush()

    @property
    def model_name(self) -> str:
        """The name that the harness was given for the model, else that of its class."""
        return self._name or type(None if self._met is None else self._met.lm).__name__

    def identity(self) -> Fingerprint | None:
        """Return who answers now; None where nobody can say. Call `meet` before."""
        return None if self._met is None else self._met.responses.asker.look()

    def meet(self, lm: Any) -> None:
        """Get to know the model that answers; `execute` does so itself."""
        self._meet(lm)

    def _meet(self, lm: Any) -> Met:
        """Return what is known of a model. Whoever asks holds on to it, as a signal handler may meet another one."""
        if self._met is not None and lm is self._met.lm:
            return self._met
        store = self.stash.store
        if self._declared is not None:
            who = Declared(named(self._declared, revision=self._revision))
        else:
            given = {**self._arguments, **({} if self._revision is None else {"revision declared": self._revision})}
            who = ModelObject(lm, store, name=self._name, arguments=given, harmless=self._harmless)
        samples, seen = samples_by_default(lm, self._arguments), Seen()
        responses = self.stash.responses(
            who,
            sampled_by_default=samples,
            keep_sampled=self._keep_sampled,
            keep_if=lambda answer: not seen.drew and is_worth_keeping(answer),
            urls=self._urls,
        )
        name, chunks = self._name or type(lm).__name__, Chunks(batch_size_of(lm), self._chunk_size)
        met = Met(lm, name, who, responses, chunks, samples, seen)
        self._met = met  # at once: an interrupt before leaves the one that was met before
        return met

    def _window(
        self,
        met: Met,
        method: str,
        reader: Reader,
        requests: Sequence[Any],
        repeats: Sequence[int],
        numbers: Sequence[int],
        answers: list[Any],
    ) -> None:
        """Answer the requests of some numbers into `answers`.

        The longest first, as most models order what they get at once: so their batches are of equals here, too.
        """
        lm, responses, chunks = met.lm, met.responses, met.chunks
        asked = read_all(reader, [requests[number] for number in numbers], [repeats[number] for number in numbers])
        for each in asked:
            if isinstance(each, Unnameable):
                topic = f"unnameable {_PARTICULAR.sub('', each.reason)}"
                self.stash.store.events.warn_once(topic, "lmstash: a request is not cached: %s", each.reason)
        occurrences = None if self._keep_sampled and len(requests) == 1 else [repeats[number] for number in numbers]
        places = {id(each): number for each, number in zip(asked, numbers, strict=True)}
        computed: set[int] = set()
        answered: set[int] = set()

        def tags(question: Any) -> dict[str, Any]:
            return tags_of(requests[places[id(question)]])

        def compute(chunk: list[Any]) -> list[Any]:
            chosen = [places[id(each)] for each in chunk]
            computed.update(chosen)
            before = states()
            given = [requests[number] for number in chosen]
            found = chunks.timed(lambda part: _listed(getattr(lm, method)(part), len(part)), given)
            drew = moved(before, states())
            # What a task's functions draw while the model is shown their documents is judged where these are read.
            met.seen.drew = bool(drew) and not reading_draws(reader, given) and self._has_drawn(met, drew, chunk)
            return found

        n_looked_up = len(numbers)
        # In the harness's own order till it is known that no answer hangs on that.
        first = [place for place in range(len(numbers)) if not is_padding(requests[numbers[place]])][: chunks.size()]
        for place, answer in self._first(met, first, asked, occurrences, tags, compute):
            answers[numbers[place]] = answer
            answered.add(place)
        left = [place for place in range(len(numbers)) if place not in answered]
        if answered and left and responses.asker.look() is None:
            chosen = [requests[numbers[place]] for place in left]
            for place, answer in zip(left, self._passed_on(lm, method, chosen), strict=True):
                answers[numbers[place]] = answer
            n_looked_up, left = n_looked_up - len(left), []
        left.sort(key=lambda place: -length_of(requests[numbers[place]]))
        if left != sorted(left):
            met.seen.reordered = True
        if left:
            for place, answer in responses.stream(
                [asked[each] for each in left],
                compute,
                batch_size=chunks.size,
                tags=tags,
                occurrences=None if occurrences is None else [occurrences[each] for each in left],
                refresh=self._refresh,
            ):
                answers[numbers[left[place]]] = answer
        self._computed += len(computed)
        self._hits += n_looked_up - len(computed)

    def _passed_on(self, lm: Any, method: str, requests: Sequence[Any]) -> list[Any]:
        """Have the model answer as without a cache."""
        self.stash.store.events.misses([b""] * len(requests), MissReason.UNSUPPORTED)
        self._computed += len(requests)
        return _listed(getattr(lm, method)(list(requests)), len(requests))

    def _has_drawn(self, met: Met, generators: list[str], questions: Sequence[Any]) -> bool:
        """Whether answers were drawn though nothing says so: then another run would draw others."""
        if self._keep_sampled or "random" in self._harmless:
            return False
        if says_sampling(questions, met.samples):
            return False
        drew = unexplained(met.lm, generators)
        if drew:
            self.stash.store.events.warn_once(
                f"drew {drew}",
                "lmstash: %s drew at random (%s) while it answered, though nothing says that it samples: what it "
                "answered then is not kept. If it samples, have the generation arguments say so (a temperature, and a "
                "seed for what is to be kept); if its answers do not hang on that, say harmless=['random'].",
                met.name,
                ", ".join(drew),
            )
        return bool(drew)

    def _first(
        self, met: Met, places: list[int], asked: list[Any], occurrences: list[int] | None, tags: Any, compute: Any
    ) -> list[tuple[int, Any]]:
        """Have a model that nobody has seen answer yet answer a chunk, to see what that changes about it.

        Returns:
            Answers by place; none for a model that is known.
        """
        responses, who = met.responses, met.who
        model = responses.asker.look()
        if model is None or not isinstance(who, ModelObject) or who.settled or not places:
            return []
        first = [asked[place] for place in places]
        numbers = None if occurrences is None else [occurrences[place] for place in places]
        found = [MISSING] * len(first) if self._refresh else responses.get_many(first, occurrences=numbers)
        missing = [k for k, each in enumerate(found) if each is MISSING]
        started = time.perf_counter()
        fresh = compute([first[k] for k in missing]) if missing else []
        seconds = time.perf_counter() - started
        if missing and who.settle(model):
            responses.put_many(
                [first[k] for k in missing],
                fresh,
                occurrences=None if numbers is None else [numbers[k] for k in missing],
                tags=[tags(first[k]) for k in missing],
                compute_seconds=seconds,
            )
        for k, answer in zip(missing, fresh, strict=True):
            found[k] = answer
        return list(zip(places, found, strict=True))


def _listed(answers: Any, n_asked: int) -> list[Any]:
    listed = list(answers) if answers is not None else []
    if len(listed) != n_asked:
        raise InvalidArgumentError(
            f"the model returned {len(listed)} answers to {n_asked} requests: it has to return one for each, in their "
            "order (nobody could say which answer belongs to which request)"
        )
    return listed


def _parsed(model_args: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the model's arguments as the harness reads them."""
    if isinstance(model_args, Mapping):
        return dict(model_args)
    if not model_args:
        return {}
    try:  # loaded with every model of the harness; it takes 1.6 s, so nobody else has to
        return dict(sys.modules["lmms_eval.utils"].simple_parse_args_string(model_args))
    except Exception:  # without the harness, or not as it writes them
        parts = [each.split("=", 1) for each in model_args.split(",")]
        return {each[0].strip(): _value(each[1]) if len(each) == 2 else None for each in parts}


def _value(text: str) -> Any:
    """Return what the harness reads a text as."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if text.isnumeric() else float(text)
    except ValueError:
        return text


def _is_sharded(lm: Any) -> bool:
    if int(getattr(lm, "world_size", 1) or 1) == 1:
        return False
    kind = str(getattr(getattr(lm, "accelerator", None), "distributed_type", ""))
    return kind.rpartition(".")[2] in {"FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"}
