"""Hooks of one pass: what they see, and that none acts, or stays, once it is over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lmstash.caches.pass_hooks import PassHooks

ONES = torch.ones(1, 2)


def n_hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def test_they_see_each_call_until_they_are_removed():
    module, seen = nn.Linear(2, 2), []
    hooks = PassHooks()
    hooks.before(module, lambda of, args, named: seen.append(("before", of is module, args[0] is ONES, named)))
    hooks.after(module, lambda of, args, output: seen.append(("after", of is module, output.shape)))
    module(ONES)
    assert seen == [("before", True, True, {}), ("after", True, (1, 2))]
    hooks.live = False
    hooks.remove()
    module(ONES)
    assert len(seen) == 2
    assert not n_hooks(module)


def test_what_is_to_see_every_end_sees_that_of_a_call_that_failed():
    module, ends = nn.Linear(2, 2), []
    hooks = PassHooks()
    hooks.after(module, lambda *_: ends.append("always"), always=True)
    hooks.after(module, lambda *_: ends.append("whole"))
    with pytest.raises(RuntimeError):
        module(torch.ones(1, 3))
    assert ends == ["always"]
    hooks.remove()


def test_one_that_was_left_behind_does_nothing():
    module = nn.Linear(2, 2)
    hooks = PassHooks()
    hooks.after(module, lambda *_: pytest.fail("the pass is over"))
    hooks.live = False
    module(ONES)


def test_an_interrupt_while_they_are_removed_leaves_none(monkeypatch: pytest.MonkeyPatch):
    module = nn.Linear(2, 2)
    hooks = PassHooks()
    for _ in range(3):
        hooks.after(module, lambda *_: None)
    remove, calls = torch.utils.hooks.RemovableHandle.remove, 0

    def interrupted(handle: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        remove(handle)

    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hooks.remove()
    assert not n_hooks(module)


def test_a_pass_of_another_thread_goes_on_while_one_is_put_on_or_taken_off():
    module = nn.Linear(2, 2)
    hooks = PassHooks()
    hooks.before(module, lambda *_: pytest.fail("it is another thread's pass"))
    module._forward_pre_hooks_with_kwargs.clear()  # as between the two steps of either
    assert module(ONES).shape == (1, 2)
    hooks.remove()
