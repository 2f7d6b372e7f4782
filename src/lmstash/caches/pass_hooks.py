"""Hooks that are on a model for one forward pass, and do nothing once it is over, even where one is left behind.

An interrupt may come while hooks are put on or removed. One that stays and still acts would break whatever the program
runs the model for afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class PassHooks:
    """The hooks of one pass, in one thread.

    When it is over, set `live` to False before anything else, then call `remove`, both in a `finally`: an interrupt may
    come within any call, that of an `__exit__` too, but not within an assignment.
    """

    __slots__ = ("_handles", "live")

    def __init__(self) -> None:
        """Put none on yet."""
        self.live = True
        """Whether they do anything."""
        self._handles: list[RemovableHandle] = []

    def before(
        self, module: nn.Module, look: Callable[[nn.Module, Any, dict[str, Any]], None], *, first: bool = False
    ) -> None:
        """Call `look` with module, arguments and keyword arguments before each call of a module; `first` of its hooks.

        It must change nothing: whoever looks whether the model has changed overlooks it.
        """

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
            # Without them by another thread's pass: torch puts hooks on, and takes them off, in two steps.
            if self.live and kwargs is not None:
                look(module, args, kwargs)

        hook.__dict__["_lmstash"] = True
        self._handles.append(module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True))

    def after(self, module: nn.Module, look: Callable[[nn.Module, Any, Any], None], *, always: bool = False) -> None:
        """Call `look` with module, arguments and output after each call of a module; `always`, even if that failed.

        It must change nothing, as above.
        """

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self.live:
                look(module, args, output)

        hook.__dict__["_lmstash"] = True
        self._handles.append(module.register_forward_hook(hook, always_call=always))

    def remove(self) -> None:
        """Take them off the model."""
        try:
            for each in self._handles:
                each.remove()
        except BaseException:  # an interrupt came between
            for each in self._handles:
                each.remove()
            raise
