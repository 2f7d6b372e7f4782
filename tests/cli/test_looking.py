"""Commands that only look: info, ls, show, env."""

from __future__ import annotations

import json
import os
import shutil
import time
from types import SimpleNamespace

import pytest

import lmstash
from lmstash.cli.output import SCHEMA


def test_info_says_what_is_held(lmstash_cli, folder):
    outcome = lmstash_cli("info")
    assert outcome.code == 0
    assert "activations/0123456789abcdef" in outcome.out
    assert "of 64.0 MiB" in outcome.out


def test_info_as_json_is_the_store_info(lmstash_cli, folder):
    data = lmstash_cli("info", "--json").data
    assert data["schema"] == SCHEMA
    assert data["entries"] == 4
    assert data["location"] == str(folder)
    assert {each["namespace"]: each["entries"] for each in data["namespaces"]} == {
        "activations/0123456789abcdef": 3,
        "user/me": 1,
    }


def test_looking_makes_no_stash_where_there_is_none(lmstash_cli, tmp_path):
    for command in ("info", "ls", "verify", "clear", "why"):
        rest = ["--yes"] if command == "clear" else ["ab"] if command == "why" else []
        outcome = lmstash_cli(command, *rest, place=tmp_path / "nothing")
        assert outcome.code == 1
        assert "there is no stash in" in outcome.err
    assert not (tmp_path / "nothing").exists()


def test_a_folder_of_something_else_is_not_touched(lmstash_cli, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert lmstash_cli("clear", "--yes", place=tmp_path).code == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "stash"] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ([], 4),
        (["--kind", "activations"], 3),
        (["--kind", "kv"], 0),
        (["--model", "tiny"], 3),
        (["--model", "01234567"], 3),
        (["--model", "0123456"], 0),  # too few digits to be a fingerprint
        (["--tag", "probe"], 3),
        (["--tag", "other"], 0),
        (["--text", "cat sat"], 2),
        (["--larger", "4KB"], 1),
        (["--older", "1h"], 0),
        (["--older", "0s"], 4),
    ],
)
def test_ls_filters(lmstash_cli, filters, count):
    data = lmstash_cli("ls", "--json", *filters).data
    assert data["total"] == count == len(data["entries"])


@pytest.mark.parametrize("name", ["/data/runs/probe-7b", "some-lab/probe-7b", "probe-7b"])
def test_a_model_is_found_by_the_word_that_ls_and_show_print(lmstash_cli, named_by_folder, name):
    write = named_by_folder(name)
    assert "probe-7b" in lmstash_cli("show", write.key.hex()).out
    (entry,) = lmstash_cli("ls", "--json", "--kind", "activations", "--model", name).data["entries"]
    assert entry["model"] == "probe-7b"
    assert lmstash_cli("ls", "--json", "--kind", "activations", "--model", entry["model"]).data["entries"] == [entry]
    assert lmstash_cli("ls", "--json", "--kind", "activations", "--model", "7b").data["total"] == 0


def test_a_whole_name_does_not_mean_others_that_end_in_it(lmstash_cli, named_by_folder):
    named_by_folder("probe-7b")
    named_by_folder("some-lab/probe-7b")
    (entry,) = lmstash_cli("ls", "--json", "--kind", "activations", "--model", "probe-7b").data["entries"]
    assert entry["meta"]["name"] == "probe-7b"


def test_ls_says_which_models_there_are_where_none_has_the_name(lmstash_cli, named_by_folder):
    named_by_folder("/data/runs/probe-7b")
    outcome = lmstash_cli("ls", "--model", "prob-7b")
    assert outcome.code == 0
    assert "no model here is called 'prob-7b'. Those there are: probe-7b, tiny." in outcome.err
    assert "no model" not in lmstash_cli("ls", "--model", "tiny", "--larger", "1GB").err


def test_ls_sorts_by_size_and_cuts_to_the_limit(lmstash_cli):
    data = lmstash_cli("ls", "--json", "--sort", "size", "--limit", "1").data
    assert data["total"] == 4
    assert [each["nbytes"] for each in data["entries"]] == [5000]


def test_ls_for_people_shows_key_site_and_text(lmstash_cli, writes):
    outcome = lmstash_cli("ls", "--kind", "activations")
    assert writes[0].key.hex()[:12] in outcome.out
    assert "block_out 3 last" in outcome.out
    assert "The cat sat" in outcome.out
    assert "3 entries" in outcome.err


def test_ls_says_how_many_it_leaves_out(lmstash_cli):
    assert "--limit 0 shows the other 3" in lmstash_cli("ls", "--limit", "1").err


def test_ls_lets_no_control_characters_through(lmstash_cli, folder):
    with lmstash.open(folder, strict=True) as stash:
        stash.store.put(b"e" * 32, b"v", namespace="user/me", meta={"text": "red \x1b[31m alert"})
    assert "\x1b" not in lmstash_cli("ls").out


def test_show_prints_the_facts_of_one_entry(lmstash_cli, writes):
    outcome = lmstash_cli("show", writes[0].key.hex()[:10])
    assert outcome.code == 0
    assert writes[0].key.hex() in outcome.out
    assert "1.5 s to compute" in outcome.out
    assert "F32" in outcome.out


def test_show_as_json_has_components_and_tensors(lmstash_cli, writes):
    entry = lmstash_cli("show", writes[0].key.hex(), "--json").data["entry"]
    assert entry["components"]["layers"] == [3]
    assert entry["tensors"] == [{"name": "value", "dtype": "F32", "shape": [64]}]


def test_show_of_a_value_without_tensors(lmstash_cli):
    entry = lmstash_cli("show", (b"u" * 32).hex(), "--json").data["entry"]
    assert entry["nbytes"] == 5000
    assert entry["tensors"] is None


def test_show_of_what_is_not_kept_is_code_1(lmstash_cli):
    outcome = lmstash_cli("show", "ff" * 32)
    assert (outcome.code, outcome.out) == (1, "")
    assert "no entry has a key that starts with" in outcome.err


def test_an_ambiguous_key_asks_for_more_digits(lmstash_cli, folder):
    with lmstash.open(folder, strict=True) as stash:
        stash.store.put(b"uuu" + b"v" * 29, b"x")
    outcome = lmstash_cli("show", b"uuu".hex())
    assert outcome.code == 2
    assert "Add digits" in outcome.err


def test_a_key_that_is_not_hex_is_code_2(lmstash_cli):
    assert lmstash_cli("show", "not-a-key").code == 2


def test_errors_are_json_too_when_asked(lmstash_cli):
    data = lmstash_cli("show", "ff" * 32, "--json").data
    assert data["schema"] == SCHEMA
    assert data["error"]["type"] == "NotFoundError"


def test_env_names_every_origin(lmstash_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("LMSTASH_CAPACITY", "7GB")
    config = tmp_path / "config" / "lmstash"
    config.mkdir(parents=True)
    (config / "config.toml").write_text("strict = true\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    settings = lmstash_cli("env", "--json").data["settings"]
    assert settings["capacity"] == {"value": 7 * 2**30, "origin": "environment LMSTASH_CAPACITY"}
    assert settings["strict"]["value"] is True
    assert settings["strict"]["origin"].startswith("config ")
    assert settings["dir"]["origin"] == "argument"
    assert settings["private"] == {"value": False, "origin": "default"}


def test_env_and_doctor_say_the_limit_that_open_would_grant(lmstash_cli, folder, tmp_path, monkeypatch):
    def told(place, *where):
        capacity = lmstash_cli("env", "--json", *where, place=place).data["settings"]["capacity"]
        return capacity["value"], capacity["origin"]

    def room(place):
        findings = lmstash_cli("doctor", "--json", place=place).data["findings"]
        return next(each["detail"] for each in findings if each["check"] == "room")

    assert told(folder) == (64 * 2**20, "the folder")
    assert "of 64.0 MiB (the folder)" in room(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=60 * 2**30))
    fresh = tmp_path / "not" / "yet"
    assert told(fresh) == (30 * 2**30, "default: half of the free disk")
    assert "of 30.0 GiB (default: half of the free disk)" in room(fresh)
    assert not fresh.parent.exists()
    with lmstash.open(fresh) as stash:
        assert stash.info().capacity_bytes == 30 * 2**30
    assert told(fresh) == (30 * 2**30, "the folder")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200 * 2**30))
    assert told(tmp_path / "other") == (50 * 2**30, "default")
    assert told(None, "--uri", "memory://") == (None, "default")
    with lmstash.open(folder, capacity_bytes=None):
        pass
    assert told(folder) == (None, "the folder")
    assert "of unlimited (the folder)" in room(folder)
    monkeypatch.setenv("LMSTASH_CAPACITY", "2MB")
    assert told(folder) == (2 * 2**20, "environment LMSTASH_CAPACITY")
    assert "of 2.0 MiB (environment LMSTASH_CAPACITY)" in room(folder)
    monkeypatch.setenv("LMSTASH_CAPACITY", "1000")
    assert "nothing is added" in room(folder)
    assert lmstash_cli("doctor").code == 0


def test_env_of_a_folder_that_open_cannot_read_says_that_nothing_is_kept(lmstash_cli, folder):
    (folder / "stash.json").write_text('{"format": 99}')
    capacity = lmstash_cli("env", "--json").data["settings"]["capacity"]
    assert capacity["value"] == 0
    assert "format 99" in capacity["origin"]


def test_env_does_not_print_the_salt(lmstash_cli, monkeypatch):
    monkeypatch.setenv("LMSTASH_SALT", "tenant-secret")
    for form in ([], ["--json"]):
        outcome = lmstash_cli("env", *form)
        assert "tenant-secret" not in outcome.out + outcome.err
        assert "(hidden)" in outcome.out


def test_env_tells_of_a_variable_that_cannot_be_read(lmstash_cli, monkeypatch):
    monkeypatch.setenv("LMSTASH_CAPACITY", "plenty")
    outcome = lmstash_cli("env")
    assert outcome.code == 2
    assert "LMSTASH_CAPACITY" in outcome.err


def test_looking_changes_neither_the_limit_nor_recency(lmstash_cli, folder, monkeypatch):
    monkeypatch.setenv("LMSTASH_CAPACITY", "2MB")  # for programs; looking must not shrink a stash
    before = lmstash_cli("ls", "--json", "--sort", "created").data["entries"]
    time.sleep(0.02)
    lmstash_cli("info")
    lmstash_cli("show", before[0]["key"])
    after = lmstash_cli("ls", "--json", "--sort", "created").data["entries"]
    assert after == before
    assert json.loads((folder / "stash.json").read_text())["capacity_bytes"] == 64 * 2**20


def test_a_disabled_program_can_still_look(lmstash_cli, monkeypatch):
    monkeypatch.setenv("LMSTASH_DISABLE", "1")
    assert lmstash_cli("info", "--json").data["entries"] == 4


def test_the_variable_names_the_folder(lmstash_cli, folder, monkeypatch):
    monkeypatch.setenv("LMSTASH_DIR", os.fspath(folder))
    assert lmstash_cli("info", "--json", place=None).data["entries"] == 4
