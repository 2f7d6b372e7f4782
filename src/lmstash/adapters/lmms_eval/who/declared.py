"""What counts of the arguments that a model was made with, where it is known by these."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

from lmstash.adapters.lm_eval.who.own_names import harmless as harmless_of
from lmstash.adapters.lmms_eval.who.noted import Noted
from lmstash.adapters.lmms_eval.who.reading import PATIENCE, RUNNING, is_secret, is_url
from lmstash.identity.content.held_files import content_of
from lmstash.identity.encoding import Component

_PASSWORD = re.compile(r"(token|secret|password)$", re.IGNORECASE)


def declared_arguments(
    code: Noted, arguments: Mapping[str, Any], harmless: frozenset[str], folders: dict[str, list[Component]]
) -> dict[str, Component]:
    """Return what counts of the arguments that a model of this code was made with, secrets as digests at most.

    Files that they name count by what they hold, unless code only writes to them; folders by the sizes and times of the
    files in them, so that other weights at one path are another model.
    """
    from lmstash.caches.responses.who import plain_url

    told: dict[str, Component] = {}
    skipped = RUNNING | harmless_of(PATIENCE, code.asked(arguments), arguments) | harmless
    for name in sorted(arguments):
        value = arguments[name]
        if name in skipped or is_secret(name):
            continue
        if is_url(value):
            value = plain_url(value)
        if _PASSWORD.search(name):
            value = hashlib.sha256(repr(value).encode()).hexdigest()
        elif isinstance(value, str) and (held := content_of(value)) is not None:
            value = value if code.only_writes(name) else [value, held]
        elif isinstance(value, str) and os.path.sep in value and os.path.isdir(value):
            value = [value, *_files_once(value, folders)]
        told[name] = value if isinstance(value, int | float | list | str | None) else repr(value)
    return told


def _files(path: str) -> list[Component]:
    found: list[Component] = []
    for here, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            stat = os.stat(os.path.join(here, file))
            found.append([os.path.relpath(os.path.join(here, file), path), stat.st_size, stat.st_mtime_ns])
    return found


def _files_once(path: str, known: dict[str, list[Component]]) -> list[Component]:
    """Return what a folder holds, as it was when it was first asked for."""
    if path not in known:
        known[path] = _files(path)
    return known[path]
