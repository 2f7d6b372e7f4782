"""Whose code a module is, told by where it lies."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from lmstash.identity.code.own_code import OwnCode
from lmstash.identity.code.owners import hides_python, is_installed, version_of


def test_a_file_of_yours_that_goes_by_a_name_of_python_s_own_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def units(text: str) -> dict[object, object]:
        module = ModuleType("calendar")
        module.__file__ = str(tmp_path / "calendar.py")
        exec(f"def helper(): return {text!r}", vars(module))
        monkeypatch.setitem(sys.modules, "calendar", module)
        program = {"__name__": "program", "calendar": module}
        exec("def ask(): return calendar.helper()", program)
        return OwnCode("program", program["ask"]).components()

    assert units("1") != units("2")


@pytest.mark.parametrize("name", ["json", "calendar", "_ctypes", "sys", "zipimport"])
def test_python_s_own_modules_are_known_by_their_names(name: str) -> None:
    __import__(name)
    assert not hides_python(name)


def test_a_package_that_does_not_say_its_version_has_that_of_its_installation() -> None:
    tenacity = pytest.importorskip("tenacity")
    assert not hasattr(tenacity, "__version__")
    assert version_of("tenacity") == version("tenacity")
    assert version_of("no_such_package") is None


def test_a_package_that_is_loaded_later_is_installed_from_then_on(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "loaded_later.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    assert not is_installed("loaded_later")
    importlib.import_module("loaded_later")
    assert is_installed("loaded_later")
    monkeypatch.delitem(sys.modules, "loaded_later")
