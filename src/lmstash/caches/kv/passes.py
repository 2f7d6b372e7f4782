"""Whether a model's own forward passes draw at random; what `generate` draws between them chooses tokens, no KV."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from lmstash.caches.drawing import moved, torch_states
from lmstash.caches.pass_hooks import PassHooks
from lmstash.identity.models.compiled import bears_hooks


class DrawsInPasses:
    """Looks on while a model runs, in the thread that makes this. Costs some 20 us a pass.

    When that is over, set `hooks.live` to False, then call `hooks.remove`, both in a `finally` (see `PassHooks`).
    """

    def __init__(self, model: Any) -> None:
        """Take a transformers model, or one of peft's, which calls the model inside."""
        inside = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        self._whole: nn.Module = model.get_base_model() if inside else model
        self.hooks = PassHooks()
        self._drew = self._looked = False
        self._thread = threading.get_ident()
        self._within = 0
        self._begun = self._before = torch_states()

    def begin(self) -> None:
        """Look on from now on."""
        if not bears_hooks(self._whole):
            return
        self.hooks.before(self._whole, self._begin, first=True)
        self.hooks.after(self._whole, self._end, always=True)

    def seen(self) -> bool:
        """Return whether a pass drew; where no pass could be looked at (of a compiled model), whether anything did."""
        return self._drew if self._looked else bool(moved(self._begun, torch_states()))

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == self._thread:
            if not self._within:
                self._before = torch_states()
            self._within += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and self._within:  # not where a hook before `_begin` has failed
            self._within -= 1
            if not self._within:
                self._looked = True
                self._drew = self._drew or bool(moved(self._before, torch_states()))
