"""What the ranks of an evaluation have to agree on: none may wait in vain for one that found all kept."""

from __future__ import annotations

import sys
from typing import Any


def must_be_even(lm: Any, method: str) -> bool:
    """Whether every rank has to call the model equally often, with equally many requests.

    So it is for sharded weights (FSDP, DeepSpeed), whose forward passes gather, and where the method itself gathers, as
    rolling log-likelihoods of `HFLM` do. It is assumed of every class that is not known.
    """
    hflm = getattr(sys.modules.get("lm_eval.models.huggingface"), "HFLM", None)
    if hflm is None or not isinstance(lm, hflm) or method == "loglikelihood_rolling":
        return True
    kind = str(getattr(getattr(lm, "accelerator", None), "distributed_type", "")).upper()
    return any(name in kind for name in ("FSDP", "DEEPSPEED", "MEGATRON", "XLA"))


def most_of_all(lm: Any, number: int) -> int:
    """Return the largest `number` of all ranks, which have to call this together; `number` where they cannot talk."""
    import torch

    gathered = lm.all_gather(torch.tensor(number, device=lm.device))
    return max(number, int(gathered.max().item())) if isinstance(gathered, torch.Tensor) else number
