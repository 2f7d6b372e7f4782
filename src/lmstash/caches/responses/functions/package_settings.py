"""What a program has set in modules of installed packages (`openai.base_url = ...`): no version says that."""

from __future__ import annotations

from collections.abc import Container
from types import ModuleType
from typing import Any

from lmstash.caches.responses.requests.encoding import HARMLESS
from lmstash.caches.responses.requests.hiding import is_secret

_PLAIN = frozenset({type(None), bool, int, float, str})


def settings_of(module: ModuleType, harmless: Container[str]) -> dict[Any, Any]:
    """Return the public plain values that lie in a module under names in lower case: whatever may be a setting.

    Constants, in upper case, follow from the version. Secrets do not count. Costs 0.3 ms for torch, with 1,500 names.

    Args:
        module: Of an installed package.
        harmless: Names that do not count, beside those of requests.
    """
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if type(value) in _PLAIN
        and name[:1] != "_"
        and name == name.lower()
        and not (name in HARMLESS or name in harmless or is_secret(name))
    }
