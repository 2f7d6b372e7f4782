"""Whether something draws at random: torch's generators, which all of a program shares, have moved.

A model with noise of its own in its forward pass (dropout that is always on, Reformer's random hashing) computes
something else each time: what one pass gave must not be served as if it were the one answer. Seen are draws from
torch's shared generators, on the CPU and on devices in use. Not seen are those from Python's `random` and numpy's,
which BigBird seeds in each pass without any harm, from a `torch.Generator` of one's own, and within
`torch.random.fork_rng()`, which puts the shared ones back.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

NOT_KEPT = (
    "its forward pass draws from torch's random numbers, so it computes something else each time (or another thread "
    "drew from them meanwhile). Make the pass deterministic: turn off the dropout or noise in it. variant= does not "
    "help here"
)
"""Why, and what to do."""
_SEED_BYTES = 8
"""Of a device's state, before that which says how much was drawn."""


def torch_states() -> dict[str, bytes]:
    """Return the state of each of torch's shared generators that is there, by name. Costs 5 to 10 us.

    Waits for no device: those of devices are kept by the host, and move as work is launched.
    """
    torch: Any = sys.modules.get("torch")
    found: dict[str, bytes] = {}
    with contextlib.suppress(Exception):  # not loaded, or somebody's own
        found["torch"] = _bytes_of(torch.get_rng_state())
    for device in ("cuda", "xpu"):
        with contextlib.suppress(Exception):
            module = getattr(torch, device)
            if module.is_initialized():
                found |= {f"torch.{device} {n}": _bytes_of(each) for n, each in enumerate(module.get_rng_state_all())}
    if sys.platform == "darwin":  # elsewhere asking fails, which takes longer
        with contextlib.suppress(Exception):
            found["torch.mps"] = _bytes_of(torch.mps.get_rng_state())
    return found


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return which generators were drawn from, or seeded, between two looks at their states."""
    return [name for name in now if (now[name] != before[name] if name in before else _is_used(name, now[name]))]


def _is_used(name: str, state: Any) -> bool:
    """Whether something was drawn from a generator that was not there before, as far as its state tells."""
    return name.startswith(("torch.cuda", "torch.xpu")) and any(state[_SEED_BYTES:])


def _bytes_of(state: Any) -> bytes:
    return state.numpy().tobytes()
