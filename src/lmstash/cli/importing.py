"""Take over what another tool has kept. Its folder is only read; importing again adds nothing twice.

`lmprobe`: a cache folder of lmprobe (layouts v1 and v2). Its files say neither which weights nor which tokens they
were computed with, so what is imported is marked unverified, and served only after you declare which model made it
(--declare, on your word) or a program recomputes a sample of it and both agree.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from lmstash.cli.output import facts, print_json
from lmstash.cli.place import open_named
from lmstash.errors import NotFoundError

SOURCES = ("lmprobe",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is taken over from where."""
    parser.add_argument("source", choices=SOURCES, help="whose cache it is")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of that cache")
    parser.add_argument("--declare", metavar="MODEL", help="name or folder of the model that made the values")


def run(arguments: argparse.Namespace) -> int:
    """Import, and print what was found."""
    if not arguments.folder.is_dir():
        raise NotFoundError(f"{arguments.folder} is not a folder. Name the folder that lmprobe caches in.")
    from lmstash.adapters.lmprobe import import_cache

    with open_named(arguments, write=True, make=True) as stash:
        report = import_cache(arguments.folder, stash, declare=arguments.declare)
    described = dataclasses.asdict(report)
    if arguments.json:
        print_json("import", source=arguments.source, report=described)
    else:
        print(facts([(name.replace("_", " "), _in_words(value)) for name, value in described.items()]))
    return 0


def _in_words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"{len(value):,}" + "".join(f"\n  {each}" for each in value[:10])
    return f"{value:,}" if isinstance(value, int) else str(value)
