"""Whether a model drew at random while it answered: the generators that programs share have moved.

A class of somebody's own may sample whatever the requests say (`do_sample=True` in its own `_model_generate`, a
`random.choice` among prompts). What it answers then is neither greedy nor known by a seed. Seen are draws from
`random`, numpy's and torch's shared generators, on the CPU and on devices that are in use; not those from others, from
clocks and from the system.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Sequence
from typing import Any

from lmstash.caches.drawing import moved, torch_states
from lmstash.caches.responses.requests.sampling import is_sampled


class Generators:
    """Looks at the generators before a model is asked, and again after that. Costs some 30 us a look."""

    def __init__(self) -> None:
        self._before: dict[str, Any] | None = None

    def begin(self, instances: Sequence[Any]) -> None:
        """These are asked next. Where one of them asks for sampling, nobody can say which of them drew."""
        self._before = None if any(asks_for_sampling(each) for each in instances) else states()

    def moved(self) -> list[str]:
        """Return whose generators something was drawn from since, though none of the requests asks for it."""
        return [] if self._before is None else moved(self._before, states())


def asks_for_sampling(instance: Any) -> bool:
    """Whether a request of the harness says that its answer is to be sampled."""
    options = instance.args[1] if len(instance.args) > 1 else None
    return isinstance(options, dict) and is_sampled(options)


def states() -> dict[str, Any]:
    """Return the state of each shared generator that is there, by name. Costs some 30 us."""
    found: dict[str, Any] = {"random": random.getstate()}
    with contextlib.suppress(Exception):  # not loaded, or somebody's own
        kind, *state = sys.modules["numpy.random"].get_state()
        found["numpy.random"] = [kind, state[0].tobytes(), state[1:]]
    return found | torch_states()
