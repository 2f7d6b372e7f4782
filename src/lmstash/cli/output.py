"""How the command line speaks: data on stdout, talk on stderr, sizes and ages in words, JSON with a schema number."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

SCHEMA = 1
"""Version of every JSON document printed here. It grows when a field changes its meaning or goes away."""

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def print_json(command: str, **fields: Any) -> None:
    """Print one JSON document on stdout, in ASCII, so that no terminal and no prompt can break it."""
    print(json.dumps({"schema": SCHEMA, "command": command, **fields}, indent=2, default=str))


def say(text: str) -> None:
    """Print talk (not data) on stderr."""
    print(text, file=sys.stderr)


def style(text: str, name: str, stream: TextIO | None = None) -> str:
    """Return `text` in a terminal style where `stream` (stdout) is a terminal and `NO_COLOR` is not set."""
    target: TextIO = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not target.isatty():
        return text
    return f"\x1b[{_STYLES[name]}m{text}\x1b[0m"


def size(nbytes: float | None) -> str:
    """Return a number of bytes for people: `3.1 MiB`; None is `unlimited`."""
    if nbytes is None:
        return "unlimited"
    amount = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def age(seconds: float) -> str:
    """Return a span for people, in its largest unit: `5 s`, `12 min`, `3 h`, `9 d`."""
    for limit, unit, length in ((90, "s", 1), (5400, "min", 60), (2 * 86400, "h", 3600)):
        if seconds < limit:
            return f"{max(0, round(seconds / length))} {unit}"
    return f"{seconds / 86400:,.0f} d"


def since(moment: float | None) -> str:
    """Return how long ago a Unix time was, or a dash."""
    return "-" if not moment else age(time.time() - moment) + " ago"


def clip(text: object, width: int) -> str:
    """Return `text` on one line, printable, and at most `width` characters long."""
    line = " ".join(str(text).split())
    line = "".join(each if each.isprintable() else "�" for each in line)
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def table(rows: Sequence[Sequence[str]], head: Sequence[str], right: str = "") -> str:
    """Return rows set in columns.

    Args:
        rows: Cells, already words.
        head: Titles of the columns.
        right: The titles of columns set to the right, separated by blanks.

    Returns:
        Lines without a newline at the end.
    """
    to_right = [title in right.split() for title in head]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        set_cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, to_right, strict=True)
        )
        return "  ".join(set_cells).rstrip()

    return "\n".join([style(line(head), "dim"), *(line(row) for row in rows)])


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values in two columns."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{style(name.ljust(width), 'dim')}  {value}" for name, value in pairs)
