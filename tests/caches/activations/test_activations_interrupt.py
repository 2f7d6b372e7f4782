"""A signal handler that calls the cache, or runs the model, in the midst of a call: both get their own values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import lmstash
from lmstash.caches.activations.model_source import ModelSource

SOURCE = str(Path(lmstash.__file__).parent)
LINES = 40


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """Return what block 1 gives for each token, `[n_tokens, hidden]`."""
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]


def at_line(line: int, work: Callable[[], None], come_between: Callable[[], None]) -> int:
    """Do `work`, and at the `line`-th line of lmstash's own code something else; returns how many lines there were."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if event == "line":
            lines += 1
            if lines == line:
                sys.settrace(None)
                try:
                    come_between()
                finally:
                    sys.settrace(trace)
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(old)
    return lines


@pytest.mark.parametrize("of", ["the same prompts", "others"])
def test_a_handler_that_calls_the_cache_at_any_line_gets_its_values_and_changes_none(
    of: str, tmp_path: Path, make_model: Callable[..., Any]
):
    model = make_model()
    with lmstash.open(tmp_path, trust_env=False) as stash:
        acts = stash.activations(model)

        def ask(seed: int) -> None:
            prompts = [[1 + seed % 100, 2, 3], [3, 4, 5, seed % 100], [*range(70), seed % 100]]
            wanted = [plain(model, ids) for ids in prompts]
            for values, each in zip(acts(prompts, 1, "last"), wanted, strict=True):
                torch.testing.assert_close(values[0], each[-1])
            for values, each in zip(acts(prompts, 1, None), wanted, strict=True):
                torch.testing.assert_close(values[0], each)

        total = at_line(0, lambda: ask(0), lambda: None)
        assert total > 1000, "the lines of lmstash are counted"
        for number, line in enumerate(range(1, total, 1 + total // LINES)):
            first, second = 2 * number, 2 * number + (of == "others")
            at_line(line, lambda first=first: ask(first), lambda second=second: ask(second))
            ask(first)


@pytest.mark.parametrize("site", ["embed", "block_out", "final"])
def test_the_model_run_by_others_as_a_pass_begins_and_within_it_is_not_what_is_read(
    site: str, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    model = make_model()
    mine, others = torch.tensor([[1, 2, 3]]), torch.tensor([[7, 8, 9]])
    runs = 0

    def run_others(*_: Any) -> None:
        nonlocal runs
        if runs in (0, 2):
            runs += 1
            with torch.no_grad():
                model(others)
            runs += 1

    source = ModelSource(model)
    (wanted,) = source.compute(_prompts(mine), [0], site, None)
    taken = source._switched_off
    monkeypatch.setattr(source, "_switched_off", lambda: (run_others(), taken())[1])  # what is read is hooked by then
    run_others.__dict__["_lmstash"] = True
    with model.model.embed_tokens.register_forward_pre_hook(lambda *_: run_others()):
        (values,) = source.compute(_prompts(mine), [0], site, None)
    assert runs == 4, "others ran before the pass and within it"
    torch.testing.assert_close(values[0], wanted[0], rtol=0, atol=0)


def _prompts(ids: torch.Tensor) -> Any:
    from lmstash.caches.activations.prompts import read_prompts

    return read_prompts(ids.tolist())
