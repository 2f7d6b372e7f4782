"""Where in a request media are named: by the names of its fields, and by the `type` of its parts.

A field whose name ends in a word for media, in the singular or the plural, holds media: `image`, `input_audio`,
`videoUrls`, `mask_image_path`. So do fields such as `url`, `source` and `data` of a part whose `type` says so, or of a
dict in a field for media. A field that is named for a path (`path`, `files`, `lora_path`, `attachment`), and wherever
it stands a text that is no more than a name with a suffix of data or code (`scans/1.pdf`, `main.py`), may be the path
of a file; in what a chat says, data only. Everything else is text, whatever it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Final

from lmstash.identity.content.media import Media

URL, PATH, ADDRESS = 1, 2, 4
"""What a text may be, by where it stands: the URL of media; the path of a file of media; a URL of anything."""

NAMED: Final = "path"
"""The kind of `Media` that follows a text in a list of the two: what the file holds that the text names."""

_WORDS: Final = "(image|img|picture|photo|visual|frame|audio|video|media)"
_FIELD = re.compile(
    rf"(.*_)?(input)?{_WORDS}s?(_?(url|uri|path|file|src|source|link)s?)*(_?(list|\d+))?"
    r"|(.*_)?(file|document|pdf)s?_?ur[li]s?",
    re.DOTALL,
)
_PATH_FIELD = re.compile(r".*_(path|file)s?|(.*_)?(file_?(name|path)|fname|attachment)s?|files|paths", re.DOTALL)
_ADDRESS = re.compile(r"(.*_)?ur[li]s?", re.DOTALL)
_MEDIA_TYPE = re.compile(rf"(input_?)?{_WORDS}(_?url)?", re.IGNORECASE)
_FILE_TYPE = re.compile(r"(input_?)?(file|document|pdf|url)(_?url)?", re.IGNORECASE)
_PLACES = frozenset({"src", "source", "image", "audio", "video", "file", "s3_location"})
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-")
_DATA: Final = (
    r"png|jpe?g|gif|webp|bmp|tiff?|heic|avif|svg|wav|mp3|flac|ogg|opus|m4a|aac|mp4|m4v|mov|avi|mkv|webm|mpe?g|pdf|"
    r"docx?|pptx?|xlsx?|rtf|txt|md|rst|csv|tsv|jsonl?|ya?ml|xml|html?|parquet|arrow|npy|npz|pt|pth|bin|safetensors|gguf|"
    r"heif|aiff|j2|jinja2?"
)
_CODE: Final = (
    r"py[ix]?|ipynb|[mc]?jsx?|[mc]?tsx?|vue|svelte|go|rs|java|ktm?s?|scala|groovy|gradle|[chmr]|cc|cpp|cxx|hpp|hh|cuh?|mm|"
    r"cs|fsx?|vb|rb|php|swift|dart|lua|p[lm]|rmd|qmd|jl|sql|sh|bash|zsh|ps1|bat|hs|mli?|clj|exs?|erl|el|lisp|scm|nim|"
    r"zig|svh?|vhdl?|asm|f90|sol|proto|thrift|graphql|gql|tf|css|s[ac]ss|less|toml|ini|cfg|conf|env|properties|log|out|"
    r"tex|bib|adoc|org|mdx|srt|vtt|diff|patch|lock|cmake|mk|lean|prompt|tmpl|tpl|mustache|hbs|geojson|ndjson|"
    r"avro|feather|orc|pkl|pickle|h5|hdf5|sqlite3?|db|zip|tar|t?gz|bz2|xz|zst|epub|od[tsp]|eml|ics|vcf"
)
_MAY_NAME = re.compile(r'\.[A-Za-z]\w{0,10}"', re.ASCII)
_MAY_NAME_BYTES = re.compile(_MAY_NAME.pattern.encode())
"""Quicker than the suffixes: a request of usual length costs 0.3 us."""
_DATA_NAME = re.compile(rf".*\.(?:{_DATA})", re.IGNORECASE)
_FILE_NAME = re.compile(rf".*\.(?:{_DATA}|{_CODE})", re.IGNORECASE)
_LONG_NAME: Final = 4096
_CONTENT = ("bytes", "array", "data", "base64", "content")
"""Beside one of these a `path` only says where it came from."""

_ORIGIN: Final = 8
"""What a text is that says where the content beside it came from."""
_SAID: Final = 16
"""What somebody says in a chat: the name of a program in it (`see main.py`) is text."""
_MEDIA, _OF_PART, _INLINE, _PATH, _FILE, _FILE_IF_NO_PART = 8, 16, 32, 64, 128, 256


@lru_cache(maxsize=4096)
def _of_name(name: str) -> int:
    """Return what a name says by itself, and what it would say in a part."""
    words = _CAMEL.sub("_", name).lower()
    address = ADDRESS if _ADDRESS.fullmatch(words) else 0
    if _FIELD.fullmatch(words):
        return _MEDIA | address
    if address or words in _PLACES:
        return _OF_PART | address | (_FILE_IF_NO_PART if words == "file" else 0)
    if _PATH_FIELD.fullmatch(words):
        return _FILE
    return _INLINE if words == "data" else _PATH if words == "path" else 0


def is_place(name: str) -> bool:
    """Whether a field of this name may hold media, or the path of a file."""
    return bool(_of_name(name) & (_MEDIA | _OF_PART | _INLINE | _PATH | _FILE))


def may_name_file(record: str | bytes) -> bool:
    """Whether a record may hold a text that is the name of a file."""
    return (_MAY_NAME.search(record) if isinstance(record, str) else _MAY_NAME_BYTES.search(record)) is not None


def _looks(text: str, holds: int) -> int:
    """Return what a text may be by its look, too."""
    if len(text) > _LONG_NAME or "://" in text:
        return holds & ~_SAID
    named = (_DATA_NAME if holds & _SAID else _FILE_NAME).fullmatch(text)
    return holds & ~_SAID | (PATH if named else 0)


def replace_named(value: Any, see: Callable[[str, int], Any], holds: int = 0) -> Any:
    """Return a request with each text that may name media, or is an address, as `see` returns it.

    Args:
        value: The request; it is not changed, and returned itself if nothing is replaced.
        see: Gets a text, and which of `URL`, `PATH` and `ADDRESS` it may be.
        holds: What `value` itself may be.
    """
    kind = type(value)
    if kind is str:
        holds = 0 if holds == _ORIGIN else _looks(value, holds)
        return see(value, holds) if holds else value
    if kind is list or kind is tuple:
        seen = [_item(*each, see, holds) for each in zip_longest(value, value[1:])]
        return value if all(new is old for new, old in zip(seen, value, strict=True)) else kind(seen)
    if kind is not dict:
        return value
    found = {name: replace_named(each, see, _held(value, name, holds)) for name, each in value.items()}
    return value if all(new is old for new, old in zip(found.values(), value.values(), strict=True)) else found


def _item(value: Any, after: Any, see: Callable[[str, int], Any], holds: int) -> Any:
    """Do what `replace_named` does, for an item of a list that another one follows."""
    if type(value) is not str or not isinstance(after, Media):
        return replace_named(value, see, holds)
    if after.kind == NAMED:  # it was replaced already
        return see(value, holds & ~(PATH | _SAID))
    new = see(value, _looks(value, holds))
    # Others say a path and what the file holds, too; that has its key.
    return value if type(new) is list and new[1].digest == after.digest else new


def _held(part: dict[Any, Any], name: Any, holds: int) -> int:
    """Return what a field of a dict may hold, which is itself where `holds` says."""
    said = _of_name(name) if type(name) is str else 0
    if not said:
        return _SAID if name == "text" or (name == "content" and "role" in part) else 0
    if said & _FILE:
        return PATH
    if said & _PATH and any(part.get(each) is not None for each in _CONTENT):
        return _ORIGIN
    address = said & ADDRESS
    if said & _MEDIA:
        return URL | PATH | address
    stated = part.get("type")
    is_media = bool(holds & URL or (type(stated) is str and _MEDIA_TYPE.fullmatch(stated)))
    if said & _PATH:
        return URL | PATH if is_media else PATH
    if not is_media and not (type(stated) is str and _FILE_TYPE.fullmatch(stated)):
        return address | (PATH if said & _FILE_IF_NO_PART else 0)
    return URL | address if said & _INLINE else URL | PATH | address
