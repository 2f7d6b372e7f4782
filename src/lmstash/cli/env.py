"""Print the settings in force and where each comes from: argument, environment, config file, the folder or default."""

from __future__ import annotations

import argparse
from typing import Any

from lmstash.cli.output import print_json, say, size, style, table
from lmstash.cli.place import capacity_in_force
from lmstash.errors import LmstashError
from lmstash.settings import Setting, config_file, resolve_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`lmstash env` takes nothing of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print every setting."""
    settings = resolve_all()
    named = arguments.uri or arguments.dir
    if named:
        settings["dir"] = Setting(named, "argument")
    try:
        settings["capacity"] = capacity_in_force(settings["dir"].value)
    except (LmstashError, OSError) as error:
        settings["capacity"] = Setting(0, f"nothing is kept: {error}")
    found = {name: {"value": public(name, each.value), "origin": each.origin} for name, each in settings.items()}
    if arguments.json:
        print_json("env", settings=found, config_file=str(config_file()))
        return 0
    rows = [(name, in_words(name, each["value"]), each["origin"]) for name, each in found.items()]
    print(table(rows, ("setting", "value", "from")))
    there = "" if config_file().exists() else " (not there)"
    say(style(f"config file: {config_file()}{there}", "dim"))
    return 0


def public(name: str, value: Any) -> Any:
    """Return a value that may be printed: a salt is a secret."""
    return "(hidden)" if name == "salt" and value is not None else value


def in_words(name: str, value: Any) -> str:
    """Return a value for people."""
    if name in ("capacity", "memory"):
        return "none" if value == 0 and name == "memory" else size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
