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
from collections.abc import Mapping, Sequence
from typing import Any

from lmstash.caches.responses.requests.sampling import is_sampled

_SEED_BYTES = 8
"""Of a device's state, before that which says how much was drawn."""


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


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return which generators were drawn from, or seeded, between two `states`."""
    return [name for name in now if (now[name] != before[name] if name in before else _is_used(name, now[name]))]


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
    torch: Any = sys.modules.get("torch")
    with contextlib.suppress(Exception):
        found["torch"] = _bytes_of(torch.get_rng_state())
    for device in ("cuda", "xpu"):
        with contextlib.suppress(Exception):
            module = getattr(torch, device)
            if module.is_initialized():
                found |= {f"torch.{device} {n}": _bytes_of(each) for n, each in enumerate(module.get_rng_state_all())}
    with contextlib.suppress(Exception):
        found["torch.mps"] = _bytes_of(torch.mps.get_rng_state())
    return found


def _is_used(name: str, state: Any) -> bool:
    """Whether something was drawn from a generator that was not there before, as far as its state tells."""
    return name.startswith(("torch.cuda", "torch.xpu")) and any(state[_SEED_BYTES:])


def _bytes_of(state: Any) -> bytes:
    return state.numpy().tobytes()
