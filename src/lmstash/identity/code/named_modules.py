"""Modules that only a text names, wholly (`"mine.layers:norm"`) or by how their names begin (`"mine." + kind`).

They are found by their files and not run: a text may be just a text.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path

IMPORTS = frozenset({"__import__", "import_module"})
"""By which code imports what only a text names."""
RESOLVERS = IMPORTS | {"locate", "resolve_name", "import_string"}
"""By which it comes by a module or what lies in it."""
_NAME = re.compile(r"\.*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.?|\.+")


def file_of_module(module: str) -> str:
    """Return a digest of a module's file, which is not run: a text may be just a text. Empty where there is none."""
    try:
        spec = find_spec(module)
        return "" if spec is None else _digest(Path(str(spec.origin)))
    except (ImportError, ValueError, OSError):
        return ""


def files_named(text: str, package: str | None) -> Iterator[tuple[str, str]]:
    """Yield the modules that a text may name, of packages that are loaded, each with a digest of its file.

    Args:
        text: Any.
        package: Where relative names begin.
    """
    text = text.replace(":", ".")
    if not _NAME.fullmatch(text):
        return
    if text.startswith("."):
        try:
            text = resolve_name(text, package) + ("" if text.strip(".") else ".")
        except ImportError:  # beyond the top, or there is no package
            return
    whole = text
    while whole and not whole.endswith("."):
        if (path := _path_of(whole)) is not None:
            yield whole, _digest(path)
            return
        parent, _, beginning = whole.rpartition(".")
        if parent and (found := [*_files_below(parent, beginning)]):
            yield from found
            return
        whole = parent
    yield from _files_below(whole[:-1], "")


def _path_of(module: str) -> Path | None:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    for folder in _folders(module.rpartition(".")[0]):
        for path in (folder / f"{module.rpartition('.')[2]}.py", folder / module.rpartition(".")[2] / "__init__.py"):
            if path.is_file():
                return path
    return None


def _files_below(package: str, beginning: str) -> Iterator[tuple[str, str]]:
    for folder in _folders(package):
        for path in sorted((*folder.glob("*.py"), *folder.glob("*/__init__.py"))):
            name = path.parent.name if path.parent != folder else path.stem
            if name.startswith(beginning) and name != "__init__":
                yield f"{package}.{name}", _digest(path)


def _folders(package: str) -> list[Path]:
    root, *rest = package.split(".")
    return [Path(each, *rest) for each in getattr(sys.modules.get(root), "__path__", ())]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
