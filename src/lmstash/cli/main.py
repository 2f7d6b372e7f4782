"""`lmstash`: reads the command's name and hands over to the command's own file, which is imported only then.

Exit codes: 0, done; 1, it could not be done, or a check found something wrong; 2, the command line is not right or the
command needs a `--yes`; 130, interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

COMMANDS = {
    "demo": ("lmstash.cli.demo.command", "the main job on a real model: computed once, read again by a new process"),
    "info": ("lmstash.cli.info", "what a stash holds and how full it is"),
    "ls": ("lmstash.cli.ls", "list entries"),
    "show": ("lmstash.cli.show", "everything known of one entry"),
    "why": ("lmstash.cli.why", "why a look-up hits or misses"),
    "verify": ("lmstash.cli.verify", "read everything and check every checksum"),
    "evict": ("lmstash.cli.evict", "remove the least valuable entries until a size is reached"),
    "prune": ("lmstash.cli.prune", "remove the entries that `ls` lists under the same conditions"),
    "clear": ("lmstash.cli.clear", "remove every entry"),
    "doctor": ("lmstash.cli.doctor", "look for what is wrong with a folder or this installation"),
    "env": ("lmstash.cli.env", "the settings in force, and where each comes from"),
    "eval": ("lmstash.cli.eval", "run lm_eval or lmms_eval, and ask the model only what it has not answered before"),
    "export": ("lmstash.cli.exporting", "write kept responses to a JSONL or Parquet file"),
    "import": ("lmstash.cli.importing", "take over what another tool has kept, or an export"),
    "proxy": ("lmstash.cli.proxy", "a caching reverse proxy in front of an OpenAI-compatible server"),
}
"""Command -> (module, one line of help). A module has `add_arguments(parser)` and `run(arguments) -> exit code`."""

_EPILOG = """\
Every command takes --dir FOLDER (or --uri URI) and --json; `lmstash COMMAND --help` says the rest.
Exit codes: 0 done; 1 could not be done, or a check found something wrong; 2 the command line is not right.
"""


def build_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of one command (imports its module)."""
    module, line = COMMANDS[command]
    implementation = importlib.import_module(module)
    parser = argparse.ArgumentParser(
        prog=f"lmstash {command}",
        description=implementation.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=implementation.run, command=command, line=line)
    implementation.add_arguments(parser)
    default = getattr(implementation, "DEFAULT_PLACE", "see `lmstash env`")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--dir", metavar="FOLDER", help=f"the stash's folder (default: {default})")
    place.add_argument("--uri", metavar="URI", help="the stash's location as a URI, for instance memory://")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview(), end="")
            return 0
        if arguments[0] in ("-V", "--version"):
            from lmstash import __version__

            print(f"lmstash {__version__}")
            return 0
        if arguments[0] not in COMMANDS:
            return _unknown(arguments[0])
        return _run(arguments[0], arguments[1:])
    except BrokenPipeError:
        # The reader (`head`) has what it wanted. Python would complain once more when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(command: str, rest: list[str]) -> int:
    from lmstash.errors import InvalidArgumentError, LmstashError

    try:
        parsed = build_parser(command).parse_args(rest)
    except SystemExit as stop:  # argparse has said what is wrong
        return int(stop.code or 0)
    try:
        code = int(parsed.run(parsed))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        raise
    except (LmstashError, OSError) as error:
        print(f"lmstash {command}: {error}", file=sys.stderr)
        if parsed.json:
            from lmstash.cli.output import print_json

            with contextlib.suppress(OSError):  # stdout itself may be what fails: that is said above
                print_json(command, error={"type": type(error).__name__, "message": str(error)})
                sys.stdout.flush()
        return 2 if isinstance(error, InvalidArgumentError) else 1


def _unknown(word: str) -> int:
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f" Did you mean `lmstash {near[0]}`?" if near else " `lmstash --help` lists the commands."
    print(f"lmstash: no command is called {word!r}.{hint}", file=sys.stderr)
    return 2


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name.ljust(width)}  {line}" for name, (_, line) in COMMANDS.items())
    return f"usage: lmstash COMMAND [options]\n\nKeeps what a language model has computed.\n\n{lines}\n\n{_EPILOG}"


def script() -> NoReturn:
    """Run as a program."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (closed by whoever started us: `>&-`)
    sys.stderr = sys.stderr or sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows a question mark
    sys.exit(main())


if __name__ == "__main__":
    script()
