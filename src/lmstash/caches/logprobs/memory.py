"""Memory that is zero and costs nothing before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmstash.errors import InvalidArgumentError


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return zeros. In host memory the system maps a page when it is first written; `torch.zeros` writes them all.

    Raises:
        InvalidArgumentError: The system has not so much.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        return torch.from_numpy(np.zeros(n_bytes, np.uint8)).view(dtype).view(*shape)
    except MemoryError:
        raise InvalidArgumentError(f"the system does not give {n_bytes:,} bytes of RAM: ask for less") from None
