"""When the prompt was computed: what is between a call's start and the first time logits are looked at."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList


class PrefillClock(LogitsProcessor):
    """Changes no logits; notes when it is first asked to."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = 0.0
        """From the start to the first token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores`."""
        if not self.seconds:
            if scores.is_cuda:  # launched is not computed
                torch.cuda.current_stream(scores.device).synchronize()
            self.seconds = time.perf_counter() - self.started
        return scores

    @staticmethod
    def listed(processors: Iterable[Any]) -> LogitsProcessorList:
        """Return processors as `generate` takes them."""
        return LogitsProcessorList(processors)
