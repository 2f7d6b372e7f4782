"""A class of `pydantic_settings` fills its objects from the environment and from files: both count."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import made_program

pytest.importorskip("pydantic_settings")
START = "import pydantic\nfrom pydantic_settings import BaseSettings, SettingsConfigDict\n"
VARIABLES = {
    "by its name": ("class S(BaseSettings):\n lst_style: str = '0'\n", "s.lst_style", "LST_STYLE"),
    "in lower case": ("class S(BaseSettings):\n lst_style: str = '0'\n", "s.lst_style", "lst_style"),
    "with a prefix": (
        "class S(BaseSettings):\n model_config = SettingsConfigDict(env_prefix='LST_')\n style: str = '0'\n",
        "s.style",
        "LST_STYLE",
    ),
    "of its base class": (
        "class B(BaseSettings):\n model_config = {'env_prefix': 'LST_'}\n style: str = '0'\nclass S(B): pass\n",
        "s.style",
        "LST_STYLE",
    ),
    "by an alias": (
        "class S(BaseSettings):\n style: str = pydantic.Field('0', validation_alias='LST_HOW')\n",
        "s.style",
        "LST_HOW",
    ),
    "by one of several": (
        "class S(BaseSettings):\n"
        " style: str = pydantic.Field('0', validation_alias=pydantic.AliasChoices('LST_A', 'LST_B'))\n",
        "s.style",
        "LST_B",
    ),
    "within another": (
        "class I(pydantic.BaseModel):\n style: str = '0'\nclass S(BaseSettings):\n"
        " model_config = {'env_nested_delimiter': '__'}\n lst: I = I()\n",
        "s.lst.style",
        "LST__STYLE",
    ),
}
MADE = {
    "in the function": "def ask(x):\n s = S()\n return {say}",
    "in another": "def settings():\n s = S()\n return s\ndef ask(x):\n s = settings()\n return {say}",
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("about", VARIABLES)
def test_the_variables_that_it_reads_count(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch, about: str, made: str
) -> None:
    source, say, variable = VARIABLES[about]
    ask = responses.cached(made_program(START + source + MADE[made].replace("{say}", say))["ask"])
    assert [ask("x"), ask("x")] == ["0", "0"]
    for value in "121":
        monkeypatch.setenv(variable, value)
        assert ask("x") == value
    monkeypatch.setenv("LMSTASH_OTHER", "1")
    assert ask("x") == "1"
    assert dict(stash.stats.misses) == {"absent": 3}


@pytest.mark.parametrize("named", ["'.env'", "('.env', 'more.env')", "Path('.env')", "str(Path.cwd() / '.env')"])
def test_what_its_file_holds_counts(
    responses: Responses, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "from pathlib import Path\nclass S(BaseSettings):\n"
    source += f" model_config = SettingsConfigDict(env_file={named})\n lst_style: str = '0'\n"
    ask = responses.cached(made_program(START + source + "def ask(x): return S().lst_style")["ask"])
    assert [ask("x"), ask("x")] == ["0", "0"]
    for value in "121":
        (tmp_path / ".env").write_text(f"LST_STYLE={value}\n")
        assert ask("x") == value
    assert dict(stash.stats.misses) == {"absent": 3}


def test_a_secret_among_its_fields_does_not_count(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "class S(BaseSettings):\n lst_api_key: str = ''\ndef ask(x):\n S()\n return x"
    ask = responses.cached(made_program(START + source)["ask"])
    for key in ("a", "b"):
        monkeypatch.setenv("LST_API_KEY", key)
        assert ask("x") == "x"
    assert stash.stats.hits == 1
