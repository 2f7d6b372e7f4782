"""The rules that keep the code small and its rooms apart."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "lmstash"
MAX_LINES = 400
HEAVY = ["numpy", "torch", "transformers", "asyncio", "sqlite3", "apsw", "xxhash"]
IMPORT_LIMIT_SECONDS = 0.040


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def test_no_file_is_longer_than_a_reader_can_hold():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in python_files(SOURCE)
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_LINES
    }
    assert not long


def lines_that_match(pattern: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in python_files(SOURCE)
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]


def test_no_class_has_a_name_that_says_nothing():
    assert lines_that_match(r"^\s*class \w*(Manager|Utils?|Helper|V\d)\b") == []


def test_nothing_unpickles():
    # `marshal.dumps` alone is let in: it compares values within a process, and reads nothing.
    pattern = r"^\s*(import|from) (pickle|marshal(?! import dumps$)|shelve|dill|cloudpickle|joblib)\b"
    assert lines_that_match(pattern) == []
    assert lines_that_match(r"^[^#`\"]*\btorch\.load\(") == []


def test_rooms_import_in_one_direction():
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    found = str(command) if command.exists() else shutil.which("lint-imports")
    assert found, "import-linter is not installed: make env"
    done = subprocess.run([found, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_loads_nothing_heavy():
    code = f"import sys; import lmstash; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_takes_at_most_40_ms_of_cpu():
    code = (
        "import resource, json\n"
        "def spent(): use = resource.getrusage(resource.RUSAGE_SELF); return use.ru_utime + use.ru_stime\n"
        "before = spent()\n"
        "import lmstash\n"
        "print(json.dumps(spent() - before))"
    )
    spent = [
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    assert min(spent) <= IMPORT_LIMIT_SECONDS


def test_the_command_line_starts_without_anything_heavy():
    code = (
        "import sys\n"
        "from lmstash.cli.main import main\n"
        "main(['--help'])\n"
        "print([name for name in ('numpy', 'torch', 'apsw', 'asyncio', 'sqlite3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
