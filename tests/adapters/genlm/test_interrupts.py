"""A signal handler in the midst of genlm's tries and questions: it raises there, or uses the same ones."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.at_lines import after_interrupt, at_line

from lmstash.adapters.genlm import DynamicTokenTrie
from lmstash.adapters.genlm.joining import Abandoned, Joiner

JOINING, TRIE = "genlm/joining.py", "adapters/genlm"


class Stop(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


@pytest.mark.parametrize("error", [Stop, TimeoutError])
def test_after_an_interrupt_the_questions_of_the_same_loop_are_answered(error: type[BaseException]) -> None:
    def answer(_name: str | None, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([[float(sum(each))] for each in contexts])

    def interrupt() -> None:
        raise error

    async def ask_two(joiner: Joiner) -> list[Any]:
        both = (joiner.ask(None, [[1]]), joiner.ask("other", [[2]]))
        return await asyncio.wait_for(asyncio.gather(*both, return_exceptions=True), 5)

    async def ask_next(joiner: Joiner) -> float:
        return float(await asyncio.wait_for(joiner.ask(None, [[3, 4]]), 5))

    n_lines = at_line(0, lambda: asyncio.run(ask_two(Joiner(answer))), interrupt, JOINING)
    assert n_lines > 10
    for line in range(1, n_lines + 1):
        loop, joiner = asyncio.new_event_loop(), Joiner(answer)
        loop.set_exception_handler(lambda *_: None)
        got: list[Any] = []

        def ask_both(loop: Any = loop, joiner: Joiner = joiner, got: list[Any] = got) -> None:
            got += loop.run_until_complete(ask_two(joiner))

        with contextlib.suppress(Stop):
            at_line(line, ask_both, interrupt, JOINING)
        for each in got:
            assert isinstance(each, TimeoutError | Abandoned) or float(each) in (1.0, 2.0)
        assert after_interrupt(loop, lambda joiner=joiner: ask_next(joiner)) == 7.0, line


def kv_of(tokens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([float(each) for each in tokens]).reshape(1, 1, 1, -1, 1)


def extend(root: DynamicTokenTrie, tokens: Sequence[int]) -> None:
    node: Any = root
    start = 0
    while start < len(tokens) and node.has_token(tokens[start]):
        node, start = node.get_token(tokens[start]), start + 1
    end = node.extend_cache(start, tokens, None, kv_of(tokens[start:]) if start < len(tokens) else None)
    end.touch()


def work(root: DynamicTokenTrie, first: int) -> None:
    for number in range(first, first + 2):
        extend(root, [1, 2, number, number + 1, number + 2])
        root.evict_lru_kv(8)
    root.add_token(first, None, kv_of([first])).past_key_values = None
    assert root.last_access > 0


def holders(root: DynamicTokenTrie) -> int:
    """How many have KV, and that it is that of their token, and that of all above."""
    pending: list[tuple[Any, bool]] = [(root, True)]
    while pending:
        node, whole = pending.pop()
        for token, child in node.children.items():
            kv = child.past_key_values
            assert kv is None or (float(kv) == token and whole)
            pending.append((child, kv is not None))
    return len(root.collect_nodes_with_kv())


@pytest.mark.parametrize("handler", ["raises", "extends", "extends another", "evicts"])
def test_a_trie_holds_its_limit_whatever_a_handler_does_in_the_midst(handler: str) -> None:
    def act() -> None:
        if handler == "raises":
            raise Stop
        if handler == "evicts":
            root.evict_lru_kv(3)
        else:
            work(root, 20 if handler == "extends" else 60)

    root = DynamicTokenTrie()
    work(root, 10)
    n_lines = at_line(0, lambda: work(root, 20), act, TRIE)
    assert n_lines > 100
    gc.collect()
    for line in range(1, n_lines + 1, 3):
        root = DynamicTokenTrie()
        work(root, 10)
        with contextlib.suppress(Stop):
            at_line(line, lambda root=root: work(root, 20), act, TRIE)
        for number in range(30, 34):  # and touches nothing of what was interrupted
            extend(root, [number, number, number])
            root.evict_lru_kv(5)
            assert holders(root) <= 5, line
        root.evict_lru_kv(0)
        assert holders(root) == root.kv_size == 0
