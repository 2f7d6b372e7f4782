"""Tables of `datasets` and of pandas, by what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from lmstash.identity.encoding import Component

_READ_BYTES = 64 << 20
"""A larger data set counts by the fingerprint that it gives itself, which is new for each process where it was made."""
_digests: dict[str, str] = {}


def table_told(value: Any, tell: Callable[[Any], Component]) -> Component:
    """Return what a table holds; None for anything else. Reading takes some 30 ms for 10 MB, each time for pandas.

    Args:
        value: Any object.
        tell: Describes a value.
    """
    root, kind = str(type(value).__module__).partition(".")[0], type(value).__qualname__
    if root == "datasets" and kind == "Dataset":
        kwargs = [value._format_type, value._format_kwargs, value._format_columns, value._output_all_columns]
        return ["datasets", _content(value._fingerprint, value), tell(kwargs)]
    if root == "pandas" and kind == "DataFrame":
        return ["pandas", kind, [str(each) for each in value.dtypes], tell(value.to_dict("split"))]
    if root == "pandas" and kind == "Series":
        return ["pandas", kind, str(value.dtype), tell([value.name, value.to_list(), value.index.to_list()])]
    return None


def _content(fingerprint: str, held: Any) -> Component:
    """Return what stands for the content of a data set, which nobody writes to: its fingerprint is new with each."""
    tables = [each.table for each in (held._data, held._indices) if each is not None]
    if sum(each.nbytes for each in tables) > _READ_BYTES:
        return fingerprint
    if fingerprint not in _digests:
        found = hashlib.sha256()
        for each in tables:
            found.update(str(each.schema).encode())
            for batch in each.to_batches():
                found.update(batch.serialize())
        _digests[fingerprint] = found.hexdigest()
    return _digests[fingerprint]
