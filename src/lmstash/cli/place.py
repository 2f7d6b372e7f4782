"""Opens the stash that a command line names, finds entries in it, and asks before something is removed."""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

from lmstash.errors import InvalidArgumentError, LmstashError, NotFoundError, StoreUnavailableError
from lmstash.settings import DEFAULT_CAPACITY_BYTES, Setting, resolve

if TYPE_CHECKING:
    from lmstash.caches.models import ModelNames
    from lmstash.stash import Stash
    from lmstash.store.base import EntryInfo, Removed, Store

UNANSWERED = 2
"""Exit code of a command that would have had to ask."""
_MODELS_SAID = 20


def location(arguments: argparse.Namespace) -> str:
    """Return the folder or URI in force: `--dir` or `--uri`, else what `lmstash.open()` would take."""
    return str(arguments.uri or arguments.dir or resolve("dir").value)


def repair_line(where: str) -> str:
    """Return the command that repairs the stash in a place."""
    return f"lmstash verify --repair --dir {shlex.quote(where)}"


def capacity_in_force(where: str) -> Setting:
    """Return the byte limit that `lmstash.open()` would give a place, and who says so. Makes and changes nothing.

    Raises:
        LmstashError: Settings or folder cannot be read.
    """
    named = resolve("capacity")
    if "://" in where:
        return Setting(None, "default")
    if named.origin != "default":
        return named
    from lmstash.store.disk.accounting.room import default_capacity_bytes
    from lmstash.store.disk.files.folder import Folder

    folder = Folder(where)
    described = folder.describe()
    if "capacity_bytes" in described:
        return Setting(described["capacity_bytes"], "the folder")
    granted = default_capacity_bytes(folder)
    return Setting(granted, "default" if granted == DEFAULT_CAPACITY_BYTES else "default: half of the free disk")


def open_named(arguments: argparse.Namespace, *, write: bool = False, make: bool = False) -> Stash:
    """Open the stash that the command line names.

    The folder's own byte limit counts, not `LMSTASH_CAPACITY`: looking at a stash must not shrink it.

    Args:
        arguments: With `dir` and `uri`.
        write: Whether the command changes what is kept.
        make: Make a stash where there is none.

    Raises:
        NotFoundError: There is no stash there.
        StoreUnavailableError: It cannot be used, or has lost its index and is only looked at.
    """
    import lmstash

    where = location(arguments)
    read_only = not write or bool(resolve("read_only").value)
    if "://" not in where and not make:
        from lmstash.store.disk.files.folder import Folder

        folder = Folder(where)
        if not folder.description.exists():
            raise NotFoundError(
                f"there is no stash in {where}. Name its folder with --dir (or LMSTASH_DIR); "
                "lmstash.open() makes one on first use, and `lmstash demo` shows how."
            )
        if read_only and not folder.index.exists():
            raise StoreUnavailableError(f"the index of {where} is missing. Rebuild it: {repair_line(where)}")
    return lmstash.open(where, strict=True, read_only=read_only, trust_env=False)


def find_entry(store: Store, text: str) -> EntryInfo:
    """Return the one entry whose key starts with the hex digits `text`. Reads the facts of all entries.

    Raises:
        InvalidArgumentError: Not hex digits, or several entries start so.
        NotFoundError: No entry does.
    """
    prefix = text.lower().removeprefix("0x")
    if not prefix or len(prefix) > 64 or set(prefix) - set("0123456789abcdef"):
        raise InvalidArgumentError(f"not a key: {text!r}. A key is 64 hex digits; its first ones will do.")
    matching = (entry for entry in store.entries() if entry.key.hex().startswith(prefix))
    found = list(islice(matching, 1 if len(prefix) == 64 else 3))
    if not found:
        raise NotFoundError(f"no entry has a key that starts with {prefix}. `lmstash ls` lists the keys.")
    if len(found) > 1:
        some = ", ".join(entry.key.hex()[:16] for entry in found[:3])
        raise InvalidArgumentError(
            f"{len(found)} entries have keys that start with {prefix} ({some}, ...). Add digits."
        )
    return found[0]


def components(entry: EntryInfo) -> dict[str, Any]:
    """Return the identity components kept with an entry (without those that its model stands for), or nothing."""
    described = entry.meta.get("id")
    if not isinstance(described, dict):
        return {}
    from lmstash.identity.keys import Key

    try:
        return dict(Key.from_description(described).components)
    except LmstashError:
        return {}


def describe(entry: EntryInfo) -> dict[str, Any]:
    """Return all facts of an entry, JSON-able."""
    return {
        "key": entry.key.hex(),
        "kind": entry.kind,
        "namespace": entry.namespace,
        "nbytes": entry.nbytes,
        "n_tokens": entry.n_tokens,
        "compute_seconds": entry.compute_seconds,
        "created": entry.created,
        "last_used": entry.last_used,
        "hits": entry.hits,
        "expires": entry.expires,
        "pinned": entry.pinned,
        "parent": entry.parent.hex(),
        "components": {name: plain(value) for name, value in components(entry).items()},
        "meta": {name: value for name, value in entry.meta.items() if name != "id"},
    }


def plain(value: Any) -> Any:
    """Return a key component as JSON can say it: bytes as hex digits, tuples as lists."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    return value


def model_of(entry: EntryInfo, names: ModelNames) -> str:
    """Return the name of an entry's model, else its fingerprint, else a dash."""
    from lmstash.caches.models import fingerprint_of, last_part

    name = names.of(entry)
    return last_part(name) if name else fingerprint_of(entry) or "-"


def models_alike(asked: str, entry: EntryInfo, names: ModelNames) -> tuple[str, str]:
    """Return the model that was asked for and an entry's, which is another, in the same words: digits or names."""
    from lmstash.caches.models import fingerprint_of, is_digits

    name, digits = model_of(entry, names), fingerprint_of(entry)
    if not (is_digits(asked) and digits):
        return asked, name
    return asked[:16], digits if name == digits else f"{digits} ({name})"


def say_models(store: Store, asked: str | None) -> None:
    """Say which models there are, if somebody asked for one that nothing is of. Reads the facts of all entries."""
    from lmstash.caches.models import ModelNames, names_model
    from lmstash.cli.output import clip, say

    if asked is None:
        return
    names, found = ModelNames(store), dict[str, None]()
    for entry in store.entries():
        if names_model(entry, asked, names):
            return
        found[model_of(entry, names)] = None
    models = sorted(found.keys() - {"-"})
    more = f" and {len(models) - _MODELS_SAID} more" if len(models) > _MODELS_SAID else ""
    there = f"Those there are: {', '.join(clip(each, 60) for each in models[:_MODELS_SAID])}{more}." if models else ""
    say(f"no model here is called {asked!r}. {there or 'Nothing here is of a model.'}")


def confirmed(arguments: argparse.Namespace, would: Removed, what: str) -> bool | None:
    """Show what would be removed and ask, unless `--yes`.

    Args:
        arguments: With `yes`.
        would: What the removal would take away.
        what: The words for it, after "N entries".

    Returns:
        True to go on; False when the person said no; None when nobody can be asked.
    """
    from lmstash.cli.output import say, size

    if arguments.yes:
        return True
    say(f"would remove {would.entries:,} entries {what} ({size(would.nbytes)}) from {location(arguments)}")
    if not would.entries:
        return True
    if not (sys.stdin and sys.stdin.isatty()):
        say("nothing was removed: nobody can be asked here. Add --yes to remove them.")
        return None
    say("remove them? [y/N]")
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    say("nothing was removed")
    return False
