"""What a model generates by where a call does not say: no part of a forward pass, and yet of what it answers."""

from __future__ import annotations

from typing import Any

from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.identity.encoding import Component, encode

_ABOUT = frozenset({"transformers_version"})
"""Where it came from."""


class GenerationDefaults:
    """The `generation_config` of a transformers model and of models within it. Threads may share it.

    Args:
        model: Any torch module.
    """

    def __init__(self, model: Any) -> None:
        held = [(name, each) for name, each in model.named_modules() if name and "generation_config" in vars(each)]
        self._holders = [("", model), *held]

    def read(self) -> dict[Component, Component]:
        """Return, by where, every setting that is set now. Costs about 15 us.

        Raises:
            UnsupportedModelError: One of them is an object that cannot be told from another.
        """
        found: dict[Component, Component] = {}
        for place, module in self._holders:
            config = getattr(module, "generation_config", None)
            if config is not None:
                found[place] = {
                    name: _plain(name, value) for name, value in vars(config).items() if _counts(name, value)
                }
        return found

    @property
    def samples(self) -> bool:
        """Whether the model samples where a call does not say."""
        return any(
            bool(getattr(getattr(each, "generation_config", None), "do_sample", False)) for _, each in self._holders
        )


def _counts(name: str, value: Any) -> bool:
    return value is not None and name[:1] != "_" and name not in _ABOUT


def _plain(name: str, value: Any) -> Component:
    plain = value.to_dict() if hasattr(value, "to_dict") else value
    try:
        encode(plain)
    except InvalidArgumentError:
        raise UnsupportedModelError(
            f"generation_config.{name} holds a {type(value).__qualname__}, which lmstash cannot tell from another one. "
            "Set it in each call, and put it into the request."
        ) from None
    return plain
