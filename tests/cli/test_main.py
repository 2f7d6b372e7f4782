"""The command line as a whole: help, exit codes, colours, pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmstash
from lmstash.cli.main import COMMANDS, build_parser, main
from lmstash.cli.output import age, clip, size, style, table

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def run_program(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmstash", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command, capsys):
    parser = build_parser(command)
    assert parser.description
    for option in ("--json", "--dir FOLDER", "--uri URI"):
        assert option in parser.format_help()
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_documentation(command):
    assert f"## lmstash {command}" in DOCS.read_text(encoding="utf-8")


def test_the_reference_is_what_the_parsers_say():
    from lmstash.cli.reference import render

    assert DOCS.read_text(encoding="utf-8") == render(), "run: python -m lmstash.cli.reference > docs/cli.md"


def test_the_overview_lists_every_command():
    done = run_program()
    assert done.returncode == 0
    assert [name for name in COMMANDS if f"  {name} " not in done.stdout] == []


def test_an_unknown_command_is_code_2_and_names_a_near_one():
    done = run_program("inof")
    assert done.returncode == 2
    assert "lmstash info" in done.stderr
    assert done.stdout == ""


def test_an_unknown_option_is_code_2():
    done = run_program("info", "--jsno")
    assert done.returncode == 2
    assert "--jsno" in done.stderr


def test_version():
    assert run_program("--version").stdout == f"lmstash {lmstash.__version__}\n"


def test_data_goes_to_stdout_and_talk_to_stderr(folder):
    done = run_program("ls", "--json", "--dir", str(folder))
    assert json.loads(done.stdout)["total"] == 4
    assert done.stderr == ""
    done = run_program("ls", "--dir", str(folder))
    assert "4 entries" in done.stderr
    assert "4 entries" not in done.stdout


def test_a_reader_that_leaves_early_is_no_fault(folder):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "lmstash", "ls", "--dir", str(folder)]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(write_end)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_no_text_can_break_the_output(folder):
    with lmstash.open(folder, strict=True) as stash:
        stash.store.put(b"s" * 32, b"v", namespace="user/me", meta={"text": "lone \ud800, snow ☃"})
    for options in ([], ["--json"]):
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = run_program("ls", "--kind", "user", "--dir", str(folder), *options, env=environment)
        assert done.returncode == 0
        assert "lone" in done.stdout


class Terminal:
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal_and_not_when_unwanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert style("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"  # type: ignore[arg-type] # only isatty is asked
    monkeypatch.setenv("NO_COLOR", "1")
    assert style("x", "red", Terminal()) == "x"  # type: ignore[arg-type] # only isatty is asked


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (5 * 2**20, "5.0 MiB"), (2**40, "1.0 TiB"), (None, "unlimited")],
)
def test_sizes_in_words(nbytes, words):
    assert size(nbytes) == words


def test_spans_of_time_in_words():
    assert [age(seconds) for seconds in (3, 600, 7200, 86400 * 9)] == ["3 s", "10 min", "2 h", "9 d"]


def test_clipped_text_is_one_printable_line():
    assert clip("a\nb\tc\x1b[0m", 40) == "a b c�[0m"
    assert clip("abcdef", 4) == "abc…"


def test_columns_line_up():
    lines = table([("a", "1"), ("bbb", "22")], ("name", "n"), right="n").splitlines()
    assert [line.rstrip() for line in lines] == ["name   n", "a      1", "bbb   22"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_under_stdout_is_said_in_one_line(flags):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "lmstash", "env", *flags]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed, tmp_path):
    lmstash.open(tmp_path / "s").close()
    command = f"{sys.executable} -m lmstash info --dir {tmp_path / 's'} {closed}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_whose_name_is_no_utf8_keeps_nothing_and_says_why(tmp_path, caplog):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    with lmstash.open(os.fsdecode(name)) as stash:
        assert stash.tensors.get("k") is None
    assert "no UTF-8" in caplog.text
    done = subprocess.run(
        [sys.executable, "-m", "lmstash", "info", "--dir", name], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert b"no UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr
