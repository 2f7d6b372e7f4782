"""Models that draw at random while they answer, though nothing that they are asked says so.

Some have sampling written into their code. It shows in the generators that programs share: where one of them was moved
by a call, the next call would have got other numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import FunctionType
from typing import Any

from lmstash.adapters.lm_eval.who.addresses import is_client
from lmstash.adapters.lmms_eval.who.pinned import harness_code
from lmstash.caches.responses.requests.sampling import is_sampled
from lmstash.identity.code.bytecode import names_in

_SEEDING = frozenset({"set_seed", "manual_seed", "manual_seed_all", "seed_everything"})


def unexplained(lm: Any, drew: Collection[str]) -> list[str]:
    """Return the generators of those that moved which the model's code gives no harmless reason to move. Costs some ms.

    Classes of the harness that seed them draw the same each time, and those that read through torch's `DataLoader` have
    it draw a seed for its workers. Clients of servers draw how long to wait before they ask again.
    """
    of_harness = [base for base in type(lm).__mro__ if base.__module__.startswith("lmms_eval.")]
    methods = [each for base in of_harness for each in list(vars(base).values()) if isinstance(each, FunctionType)]
    named = frozenset[str]().union(*[names_in(each.__code__) for each in methods])
    if not _SEEDING.isdisjoint(named):
        return []
    code = harness_code()
    code.note_class(type(lm))
    code.add(type(lm))
    waits = "random" not in code.names and any(map(is_client, list(getattr(lm, "__dict__", {}).values())))
    harmless = {*(["torch"] if "DataLoader" in named else []), *(["random"] if waits else [])}
    return sorted({*drew} - harmless)


def says_sampling(questions: Sequence[Any], by_default: bool) -> bool:
    """Whether one of several requests, as they were read, asks to be answered by chance."""
    told = (each.get("gen_kwargs") for each in questions if isinstance(each, dict))
    return any(is_sampled(each if isinstance(each, dict) else {}, by_default) for each in told)
