"""`load_from_cache`, `save_to_cache`, `delete_cache`: lmms-eval's request cache by its own names, in a safe format."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from lmstash.adapters.lmms_eval.places import SUBFOLDER, VARIABLE
from lmstash.adapters.lmms_eval.saved_requests.attaching import Attaching, DetachedError, building
from lmstash.adapters.lmms_eval.saved_requests.blobs import NAMESPACE as MEDIA
from lmstash.adapters.lmms_eval.saved_requests.blobs import Blobs, MissingBlobError
from lmstash.adapters.lmms_eval.saved_requests.packing import Packer
from lmstash.adapters.lmms_eval.saved_requests.parts import Rounds, Run, are_of_one_run, stamp
from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import CorruptEntryError, FormatError, InvalidArgumentError
from lmstash.events import DropReason, MissReason
from lmstash.identity.keys import Key
from lmstash.settings import settings_stamp
from lmstash.stash import Stash, open_stash
from lmstash.store.base import Write

NAMESPACE = "lmms_eval/saved"
_HEAD = struct.Struct("<BI")
_FORM = 0

_rounds = Rounds()
_opened: dict[tuple[Any, ...], Stash] = {}
_lock = threading.Lock()


def load_from_cache(file_name: str, *, fingerprint: Any = None, stash: Stash | None = None) -> Any:
    """Return what was saved under a name, or None.

    Objects are the caller's own. Functions are found again inside the harness, in the task that it builds; outside it
    they are None. Costs about 0.1 ms and 5 us per request.

    Args:
        file_name: The name, exactly.
        fingerprint: What the value hangs on (see `invalidating.fingerprint_of`); if it was saved with another one, or
            with none, it is not served. Without, whatever is saved is.
        stash: Where; default: below the folder that `LM_HARNESS_CACHE_PATH` names now, else the default stash.
    """
    now = building.get()
    if now is not None and not now.wanted:
        return None
    place = stash or _place()
    _report_pickles(place, file_name)
    key = _key(place, file_name, 0)
    try:
        asked = _asked(fingerprint)
    except Exception as error:  # a file that is gone, or whatever other people's objects do
        if place.store.strict:
            raise
        text = "lmstash: %s is not looked for, since its fingerprint= cannot be read: %s"
        place.store.events.warn_once(f"fingerprint {file_name}", text, file_name, error)
        place.store.events.miss(NAMESPACE, key, MissReason.UNSUPPORTED)
        return None
    return _load(place, file_name, asked)


def save_to_cache(
    file_name: str,
    obj: Any,
    *,
    fingerprint: Any = None,
    model: str | None = None,
    task: str | None = None,
    stash: Stash | None = None,
    compress: bool = False,
    part: tuple[int, int] = (0, 1),
    run: Run | None = None,
) -> bool:
    """Save a value under a name, in the place of what was there; returns whether it is kept.

    Takes what JSON can say, with tuples, bytes and other types of Python kept; groups of the harness's instances or of
    `Request`s; images, arrays and tensors by value, each once; functions by their source; of any other object its
    attributes. Changes none of them. Costs about 10 us per request, and the digests of its media.

    Args:
        file_name: Any name; `{model}_{task}` by convention.
        obj: The value.
        fingerprint: What it hangs on: `load_from_cache(fingerprint=...)` with another one does not serve it.
        model: A name that `delete_cache` finds it by.
        task: Another one; those of instances and requests in it are noted, too.
        stash: As for `load_from_cache`.
        compress: Make it smaller (needs the extra `zstd`).
        part: Number of this part and how many there are, of a list of groups that several ranks save. They are loaded
            when all parts of one run are there.
        run: Which run a part is of; default: one in which this process saves each part once.
    """
    now = building.get()
    if now is not None and not now.wanted:
        return False
    place = stash or _place()
    store, events = place.store, place.store.events
    key = _key(place, file_name, part[0])
    try:
        number, n_parts = part
        if not 0 <= number < n_parts or (n_parts > 1 and not isinstance(obj, list)):
            raise InvalidArgumentError(f"part {part} is none of a list")
        asked = _asked(fingerprint)
        squeeze = _compress if compress else None
        blobs = Blobs(store, place.salt, squeeze)
        packer = Packer(blobs, Attaching())
        body = encode_record(obj, packer.take_apart)
        told = {"fingerprint": asked, "parts": n_parts, "media": blobs.names, "packed": compress}
        if n_parts > 1:
            told["run"] = stamp(run or _rounds.run((id(store), file_name, n_parts), number))
        head = encode_record(told)
        tasks, models = _names(file_name, packer.tasks, model, task)
        meta = {"name": file_name, "tasks": tasks, "models": models}
        value = [_HEAD.pack(_FORM, len(head)), head, squeeze([body]) if squeeze else body]
        kept = blobs.flush()
        return store.put_many([Write(key, value, namespace=NAMESPACE, meta=meta)]) == 1 and kept
    except Exception as error:  # LmstashError, or whatever other people's objects do when they are looked at
        if store.strict:
            raise
        events.drop(NAMESPACE, key, DropReason.UNSUPPORTED)
        events.warn_once(f"save {type(error)} {file_name}", "lmstash: %s is not saved: %s", file_name, error)
        return False


def delete_cache(key: str = "", *, stash: Stash | None = None) -> int:
    """Remove what was saved; returns how many values. A folder that is not there is no error.

    Args:
        key: How their names begin, or the name of their model or their task; the default removes all.
        stash: As for `load_from_cache`.
    """

    def chosen(meta: Mapping[str, Any]) -> bool:
        return meta.get("name", "").startswith(key) or key in meta.get("tasks", ()) or key in meta.get("models", ())

    return delete_chosen(chosen, stash=stash)


def delete_chosen(chosen: Callable[[Mapping[str, Any]], bool], *, stash: Stash | None = None) -> int:
    """Remove the saved values that are chosen by their `name`, `tasks` and `models`; returns how many values."""
    if stash is None and not _exists():
        return 0
    place = stash or _place()
    removed = place.store.prune(lambda entry: chosen(entry.meta), namespace=NAMESPACE)
    _sweep(place)
    return removed.entries


def _load(place: Stash, file_name: str, fingerprint: str | None) -> Any:
    store, events = place.store, place.store.events
    heads: list[dict[str, Any]] = []
    bodies: dict[bytes, Any] = {}
    key = _key(place, file_name, 0)
    try:
        while not heads or len(heads) < heads[0]["parts"]:
            key = _key(place, file_name, len(heads))
            value = store.get(key)
            if value is None:
                break
            head, bodies[key] = _split(value)
            heads.append(head)
        if not heads:
            return None
        if not are_of_one_run(heads):
            text = "lmstash: %s was saved by several ranks, and not all parts of one run are there"
            events.warn_once(f"parts {file_name}", text, file_name)
            events.miss(NAMESPACE, key, MissReason.MISMATCH)
            return None
        if fingerprint is not None and heads[0]["fingerprint"] != fingerprint:
            events.miss(NAMESPACE, key, MissReason.MISMATCH)
            return None
        packer = Packer(Blobs(store, place.salt), Attaching())
        parts: list[Any] = []
        for key in bodies:
            parts.append(decode_record(bodies[key], packer.put_together))
        return parts[0] if len(parts) == 1 else sorted(chain(*parts), key=_first_doc)
    except DetachedError as error:
        events.warn_once(f"detached {file_name}", "lmstash: %s; it is built anew", error)
        events.miss(NAMESPACE, key, MissReason.MISMATCH)
    except MissingBlobError:
        events.miss(NAMESPACE, key, MissReason.GONE)
    except (FormatError, TypeError, KeyError, ValueError) as error:
        events.damage(NAMESPACE, key, str(error))
        events.miss(NAMESPACE, key, MissReason.DAMAGED)
        if store.strict:
            raise
    return None


def _split(value: memoryview) -> tuple[dict[str, Any], Any]:
    if len(value) < _HEAD.size:
        raise CorruptEntryError("a saved value is cut short")
    form, length = _HEAD.unpack_from(value)
    end = _HEAD.size + length
    if form != _FORM or end > len(value):
        raise CorruptEntryError("a saved value is not laid out as this version knows it")
    head = decode_record(value[_HEAD.size : end])
    body: Any = value[end:]
    if head["packed"]:
        from lmstash.codecs.compression import decompress

        body = decompress(body, 1 << 40)
    return head, body


def _sweep(place: Stash) -> None:
    """Remove media that no saved value holds any more."""
    held: set[bytes] = set()
    blobs = Blobs(place.store, place.salt)
    for entry in place.store.entries(NAMESPACE):
        value = place.store.peek_many([entry.key])[0]
        if value is not None:
            try:
                held.update(map(blobs.key, _split(value)[0]["media"]))
            except (FormatError, KeyError, TypeError):
                continue
    place.store.prune(lambda entry: entry.key not in held, namespace=MEDIA)


def _asked(fingerprint: Any) -> str | None:
    if fingerprint is not None:
        from lmstash.adapters.lmms_eval.saved_requests.invalidating import fingerprint_of

        return fingerprint_of(fingerprint)
    now = building.get()
    return None if now is None else now.fingerprint


def _names(file_name: str, tasks: Iterable[str], model: str | None, task: str | None) -> tuple[list[str], list[str]]:
    """Return names of tasks and models to find a value by; where nobody gives them, by the convention of its name."""
    words = file_name.split("_")
    tails = ["_".join(words[place:]) for place in range(1, len(words))]
    heads = ["_".join(words[:place]) for place in range(1, len(words))]
    known = {each for each in (*tasks, task) if each and each != "None"}
    return sorted(known or tails), sorted([model] if model else heads)


def _key(place: Stash, file_name: str, part: int) -> bytes:
    if not isinstance(file_name, str) or not file_name:
        raise InvalidArgumentError(f"file_name= takes a name, not {file_name!r}")
    return Key({"what": NAMESPACE, "name": file_name, "part": part, "salt": place.salt}).digest


def _first_doc(group: Any) -> tuple[str, Any]:
    first = group[0] if isinstance(group, list) and group else None
    doc = getattr(first, "doc_id", None)
    return str(getattr(first, "task", None)), doc if isinstance(doc, int) else -1


def _compress(parts: Any) -> bytes:
    from lmstash.codecs.compression import compress

    return compress(parts)


def _folder() -> Path | None:
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def _exists() -> bool:
    folder = _folder()
    return folder is None or (folder / SUBFOLDER).is_dir()


def _place() -> Stash:
    """Return the stash that the variables name at this moment, as they set it up; each is opened once in a process."""
    folder = _folder()
    where = str(folder / SUBFOLDER) if folder is not None else ""
    named = where, settings_stamp()
    with _lock:
        found = _opened.get(named)
        path = None if found is None else getattr(found.store, "folder_path", None)
        if found is None or (path is not None and not Path(path).is_dir()):
            found = _opened[named] = open_stash(where) if where else open_stash()
        return found


def default_place() -> str:
    """Return where things are saved now, as `lmstash.open` takes it."""
    path = getattr(_place().store, "folder_path", None)
    return "memory://" if path is None else str(path)


def _report_pickles(place: Stash, file_name: str) -> None:
    """Say once that there are files of the harness's own cache, which nobody should load."""
    folders = [_folder()]
    harness = sys.modules.get("lmms_eval.caching")
    if harness is not None and harness.__file__:
        folders.append(Path(harness.__file__).parent / ".cache")
    for folder in folders:
        if folder is None or not folder.is_dir():
            continue
        found = [each.name for each in folder.iterdir() if each.name.endswith(".pickle")]
        if found:
            place.store.events.warn_once(
                f"pickles in {folder}",
                "lmstash: %d .pickle files in %s are not read, since that could run code (%s); they can be deleted",
                len(found),
                folder,
                next((name for name in found if name.startswith(file_name)), found[0]),
            )
