"""Where a setting comes from: explicit argument > environment > config file > default.

Nothing is read at import. The config file is `$XDG_CONFIG_HOME/lmstash/config.toml` (else `~/.config/...`), with the
names of `KNOWN` (`capacity = "50GB"`); variables are named `LMSTASH_CAPACITY` and so on. `trust_env=False` leaves out
both.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, cast

from lmstash.errors import InvalidArgumentError
from lmstash.unset import UNSET

DEFAULT_CAPACITY_BYTES = 50 * 2**30
"""The limit of a folder when nobody names one (and never more than half of what is free on its disk at first use)."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_AGES = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_TRUE = {"1", "on", "yes", "true"}
_FALSE = {"0", "off", "no", "false", ""}


@dataclass(frozen=True, slots=True)
class Setting:
    """One resolved value and where it came from."""

    value: Any
    origin: str
    """`argument`, `environment LMSTASH_X`, `config FILE`, `the folder`, or `default`."""


def parse_bytes(text: str | int | float | None) -> int | None:
    """Return a number of bytes: `"50GB"`, `"1.5 MiB"`, `4096`; None and `"unlimited"` are None.

    Units are powers of 1,024 (`50GB` is 50 * 2**30), as the memory sizes of this field are.

    Raises:
        InvalidArgumentError: The text is not a size.
    """
    if text is None or (isinstance(text, str) and text.strip().lower() in ("unlimited", "none")):
        return None
    amount = cast(float, text) if isinstance(text, Real) else _amount(str(text))
    if amount < 0:
        raise InvalidArgumentError(f"a size cannot be negative: {text!r}")
    if not amount < math.inf or 0 < amount < 1:  # half a byte is meant to be something else
        raise InvalidArgumentError(f"not a size: {text!r}. Write a whole number of bytes, or for instance '50GB'.")
    return int(amount)


def _amount(text: str) -> float:
    match = re.fullmatch(r"\s*(\d[\d_]*\.?\d*|\.\d+)\s*([kmgt]?)(i?b)?\s*", text.lower())
    if not match:
        raise InvalidArgumentError(f"not a size: {text!r}. Write a number of bytes, or for instance '50GB'.")
    return float(match[1].replace("_", "")) * _UNITS[match[2]]


def parse_age(text: str | float) -> float:
    """Return seconds: `"7d"`, `"12h"`, `"90"` or 90 (seconds).

    Raises:
        InvalidArgumentError: The text is not a span of time.
    """
    if isinstance(text, Real) and text == text:
        try:
            return min(float(text), sys.float_info.max)
        except OverflowError:  # a whole number of hundreds of digits
            return sys.float_info.max if cast(float, text) > 0 else -sys.float_info.max
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smhdw]?)\s*", str(text).lower())
    if not match:
        raise InvalidArgumentError(f"not a span of time: {text!r}. Write for instance 90s, 30m, 12h, 7d or 2w.")
    return float(match[1]) * _AGES[match[2] or "s"]


def parse_bool(text: str | bool) -> bool:
    """Return a truth value: `1 on yes true` or `0 off no false`, in any case.

    Raises:
        InvalidArgumentError: The text is neither.
    """
    if isinstance(text, bool):
        return text
    word = str(text).strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise InvalidArgumentError(f"not a truth value: {text!r}. Write 1 or 0.")


def default_folder() -> Path:
    """Return `$XDG_CACHE_HOME/lmstash`, else `~/.cache/lmstash`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmstash"


def config_file() -> Path:
    """Return the path of the config file, which need not exist."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lmstash" / "config.toml"


class Known(NamedTuple):
    """A setting that there is."""

    parse: Callable[[Any], Any]
    default: Any
    meaning: str


KNOWN: dict[str, Known] = {
    "dir": Known(str, None, "the folder that `lmstash.open()` opens; by default `~/.cache/lmstash`"),
    "capacity": Known(
        parse_bytes,
        DEFAULT_CAPACITY_BYTES,
        "byte limit: `50GB`, a number, or `unlimited`; by default what the folder was last given, else 50 GiB or half "
        "of the free disk",
    ),
    "memory": Known(parse_bytes, 0, "byte limit of a RAM tier in front of the folder; by default there is none"),
    "strict": Known(parse_bool, False, "`1`: raise on faults instead of counting them"),
    "read_only": Known(parse_bool, False, "`1`: serve, and never write"),
    "private": Known(parse_bool, False, "`1`: keep no text beside the values"),
    "compress": Known(
        parse_bool, False, "`1`: compress responses with zstd; `pip install 'lmstash[zstd]'`, also where they are read"
    ),
    "salt": Known(str, None, "a tenant's secret, which enters every key: other salts find nothing"),
    "disable": Known(parse_bool, False, "`1`: keep and serve nothing; programs run as without lmstash"),
}
"""Every setting, by its name in the config file."""


def resolve(name: str, argument: Any = UNSET, *, trust_env: bool = True) -> Setting:
    """Return the value of setting `name` and its origin.

    Args:
        name: One of `KNOWN`.
        argument: What the caller passed, or `UNSET`.
        trust_env: Whether environment and config file count.

    Raises:
        InvalidArgumentError: The value found cannot be read; the message names its origin.
    """
    parse, default, _ = KNOWN[name]
    found, origin = argument, "argument"
    if found is UNSET and trust_env:
        variable = f"LMSTASH_{name.upper()}"
        if variable in os.environ:
            found, origin = os.environ[variable], f"environment {variable}"
        else:
            config = _read_config()
            if name in config:
                found, origin = config[name], f"config {config_file()}"
    if found is UNSET:
        return Setting(str(default_folder()) if name == "dir" else default, "default")
    if found is None:
        return Setting(None, origin)
    try:
        return Setting(parse(found), origin)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{origin}: {error}") from None


def resolve_all() -> dict[str, Setting]:
    """Return every setting as it stands without arguments (`lmstash env` prints this)."""
    return {name: resolve(name) for name in KNOWN}


def settings_stamp() -> tuple[Any, ...]:
    """Return what is equal as long as no setting has changed: variables, how the config file looks. Costs 50 us."""
    path = config_file()
    try:
        stat = path.stat()
        looks: tuple[int, ...] = stat.st_mtime_ns, stat.st_size, stat.st_ino
    except OSError:
        looks = ()
    named = [os.environ.get(f"LMSTASH_{name.upper()}") for name in KNOWN]
    return *named, str(path), looks, str(default_folder())


def _read_config() -> dict[str, Any]:
    path = config_file()
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    import tomllib

    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path} is not valid TOML: {error}. Mend it or move it away.") from None
