"""Which attributes somebody's own code may go by."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from lmstash.adapters.lm_eval.own_names import harmless, names_in_own_code


class Base:
    @property
    def shift(self) -> Any:
        return [self.delta for _ in range(2)]  # pyright: ignore[reportAttributeAccessIssue]


class Mine(Base, HFLM):
    def tok_encode(self, string: str, **options: Any) -> Any:
        return (lambda: self.header + string)()


def test_names_are_those_of_ones_own_methods_and_of_functions_within_them() -> None:
    named = names_in_own_code(Mine, "lm_eval")
    assert {"delta", "header"} <= named
    assert "pretrained" not in named  # which the harness's own code asks for
    assert names_in_own_code(HFLM, "lm_eval") == set()


def test_text_and_numbers_of_these_names_count() -> None:
    held = {"delta": 0.5, "header": object(), "timeout": 3}
    names = {"delta", "header", "timeout", "other"}
    assert harmless(names, {"delta", "header", "other"}, held) == {"header", "timeout", "other"}
