"""Writes `docs/cli.md` from the commands' own help: `python -m lmstash.cli.reference > docs/cli.md`."""

from __future__ import annotations

import argparse
import functools

from lmstash.cli.main import COMMANDS, build_parser
from lmstash.settings import KNOWN

_HEAD = """\
# The command line

<!-- Written by `python -m lmstash.cli.reference > docs/cli.md`; a test compares it with the commands' own help. -->

Every command calls the same functions as the library. `--dir` names a stash's folder (or `--uri` its URI); without
either, the folder is the one that `lmstash.open()` takes: see `lmstash env`. Commands that fill a
stash (`import`, `eval`, `proxy`) make it where there is none; those that look at one or remove from it do not.

Data goes to stdout, talk to stderr. `--json` prints one JSON document with a `schema` number, which grows when a field
changes its meaning or goes away. Colours show only on a terminal, and not when `NO_COLOR` is set.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | it could not be done, or a check found something wrong (`verify`, `doctor`), or a look-up would miss (`why`) |
| 2 | the command line is not right, or the command would have had to ask and nobody was there (`--yes`) |
| 130 | interrupted |
"""


_SETTINGS = """\
## Settings

An argument of `lmstash.open()` comes first, then the environment, then the config file
(`$XDG_CONFIG_HOME/lmstash/config.toml`, else `~/.config/lmstash/config.toml`), then the default. `lmstash env` says
what is in force and where it comes from; `lmstash.open(trust_env=False)` leaves out environment and file.

| variable | in the file | meaning |
| --- | --- | --- |
{rows}
| `LMSTASH_ALLOW_NETWORK` | | `1`: open a folder on a network file system, which only one machine may use at a time |
"""


def render() -> str:
    """Return the whole document."""
    rows = "\n".join(f"| `LMSTASH_{name.upper()}` | `{name}` | {known.meaning} |" for name, known in KNOWN.items())
    sections = [_SETTINGS.format(rows=rows)]
    for name, (_, line) in COMMANDS.items():
        parser = build_parser(name)
        # argparse would set its help to the width of this terminal.
        parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=100)
        sections.append(f"## lmstash {name}\n\n{line[0].upper()}{line[1:]}.\n\n```text\n{parser.format_help()}```\n")
    return "\n".join([_HEAD, *sections])


if __name__ == "__main__":
    print(render(), end="")
