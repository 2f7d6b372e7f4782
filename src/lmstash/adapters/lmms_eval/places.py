"""Where things are kept: the folder that the harness or a variable names, else the default stash."""

from __future__ import annotations

import os
from pathlib import Path

from lmstash.stash import Stash, open_stash

VARIABLE = "LM_HARNESS_CACHE_PATH"
"""Names the folder of saved requests; both harnesses read it, lmstash at each call."""
SUBFOLDER = "lmstash"
_OWN_FILES = ("CACHEDIR.TAG", "segments", "stash.json", "index.db", "recency", "repair.lock", "flights-", ".")


def open_place(where: str | os.PathLike[str] | None) -> Stash:
    """Open the stash that a harness's `use_cache` names; the default one for None.

    A file `FOLDER/name.db` stands for its folder. In a folder that holds other things, the stash is a folder of its
    own.
    """
    if where is None:
        return open_stash()
    text = os.fspath(where)
    if "://" in text:
        return open_stash(text)
    folder = Path(text).parent if text.endswith(".db") else Path(text)
    return open_stash(folder if _is_ours(folder) else folder / SUBFOLDER)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a stash, empty, or not there yet. Another rank may be making the stash just now."""
    try:
        return all(each.name.startswith(_OWN_FILES) for each in folder.iterdir()) or is_stash(folder)
    except OSError:
        return True


def is_stash(folder: Path) -> bool:
    """Whether a folder is a stash."""
    return (folder / "stash.json").exists()
