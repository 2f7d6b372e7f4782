"""Take over what another tool has kept. Its folder is only read; importing again adds only what is new.

`lmprobe`: a cache folder of lmprobe (layouts v1 and v2). Its files do not say which weights computed them, so what is
taken is marked unverified and not served until you vouch for the model (--declare), or until a program computes a
sample again and it agrees (`lmstash.adapters.lmprobe.import_cache(..., verify_sample=5)`).

Exit code 1 when a file or tensor could not be taken.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lmstash.cli.output import print_json
from lmstash.cli.place import open_named
from lmstash.errors import NotFoundError

SOURCES = ("lmprobe",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is taken over from where."""
    parser.add_argument("source", choices=SOURCES, help="whose cache it is")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of that cache")
    parser.add_argument("--model", metavar="NAME", help="take only this model (also names a folder that does not)")
    parser.add_argument("--declare", action="store_true", help="vouch that the model of --model computed the values")


def run(arguments: argparse.Namespace) -> int:
    """Import, and print what was taken."""
    if not arguments.folder.is_dir():
        raise NotFoundError(f"{arguments.folder} is not a folder. Name the folder that lmprobe caches in.")
    from lmstash.adapters.lmprobe import import_cache

    with open_named(arguments, write=True, make=True) as stash:
        report = import_cache(arguments.folder, stash, model=arguments.model, declare=arguments.declare)
    if arguments.json:
        print_json("import", source=arguments.source, report=report.as_dict())
    else:
        print(report)
    return 1 if report.problems or any(each.dropped for each in report.models) else 0
