"""Commands that remove: evict, prune, clear. They show what they would remove, and ask."""

from __future__ import annotations

import io

import pytest

import lmstash


def kept(folder) -> int:
    with lmstash.open(folder, strict=True, read_only=True) as stash:
        return stash.info().entries


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", [["prune", "--kind", "activations"], ["clear"]])
def test_without_a_person_to_ask_nothing_goes(lmstash_cli, folder, monkeypatch, command):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    outcome = lmstash_cli(*command)
    assert outcome.code == 2
    assert "--yes" in outcome.err
    assert "would remove" in outcome.err
    assert kept(folder) == 4


@pytest.mark.parametrize("command", [["prune", "--kind", "activations"], ["clear"]])
def test_an_answer_other_than_yes_keeps_everything(lmstash_cli, folder, monkeypatch, command):
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    outcome = lmstash_cli(*command)
    assert outcome.code == 0
    assert "remove them?" in outcome.err
    assert "nothing was removed" in outcome.err
    assert kept(folder) == 4


def test_a_yes_removes(lmstash_cli, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert lmstash_cli("clear").code == 0
    assert kept(folder) == 0


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["--kind", "activations"], 1),
        (["--model", "tiny"], 1),
        (["--tag", "probe"], 1),
        (["--tag", "other"], 4),
        (["--older", "1d"], 4),
        (["--kind", "user", "--older", "0s"], 3),
    ],
)
def test_prune_removes_what_meets_every_condition(lmstash_cli, folder, conditions, left):
    data = lmstash_cli("prune", *conditions, "--yes", "--json").data
    assert data["removed"]["entries"] == data["would_remove"]["entries"] == 4 - left
    assert kept(folder) == left


def test_prune_without_a_condition_is_code_2(lmstash_cli, folder):
    outcome = lmstash_cli("prune", "--yes")
    assert outcome.code == 2
    assert kept(folder) == 4


def test_a_dry_run_only_counts(lmstash_cli, folder):
    data = lmstash_cli("prune", "--kind", "activations", "--dry-run", "--json").data
    assert data["would_remove"]["entries"] == 3
    assert data["removed"] is None
    assert kept(folder) == 4


def test_clear_leaves_a_strangers_files_alone(lmstash_cli, folder):
    strangers = [folder / "notes.txt", folder / "segments" / "thesis.pdf"]
    for path in strangers:
        path.write_text("mine")
    assert lmstash_cli("clear", "--yes").code == 0
    assert [path.read_text() for path in strangers] == ["mine", "mine"]
    assert kept(folder) == 0


def test_evict_makes_the_stash_small_enough(lmstash_cli, folder):
    with lmstash.open(folder, strict=True) as stash:
        for number in range(40):
            stash.store.put(bytes([number]) * 32, b"x" * 500_000, namespace="user/me")
    data = lmstash_cli("evict", "--to", "10MB", "--json").data
    assert data["before"] > 10 * 2**20 >= data["after"]
    assert data["removed"]["entries"] > 0


def test_evict_to_less_than_can_be_is_code_1_and_says_so(lmstash_cli, folder):
    with lmstash.open(folder, strict=True) as stash:
        key = b"p" * 32
        stash.store.put(key, b"x" * 500_000, namespace="user/me")
        stash.store.pin_many([key])
    outcome = lmstash_cli("evict", "--to", "100KB")
    assert outcome.code == 1
    assert "pinned" in outcome.err
    data = lmstash_cli("evict", "--to", "100KB", "--json")
    assert data.code == 1
    assert data.data["after"] > 500_000
    with lmstash.open(folder, strict=True) as stash:
        assert stash.store.contains(key)


def test_evict_to_what_is_no_size_is_code_2(lmstash_cli):
    assert lmstash_cli("evict", "--to", "small").code == 2
    assert lmstash_cli("evict", "--to", "unlimited").code == 2


def test_a_read_only_setting_keeps_everything(lmstash_cli, folder, monkeypatch):
    monkeypatch.setenv("LMSTASH_READ_ONLY", "1")
    outcome = lmstash_cli("clear", "--yes")
    assert outcome.code == 1
    assert outcome.err
    assert kept(folder) == 4


def test_prune_takes_the_word_that_ls_prints_for_a_model(lmstash_cli, folder, named_by_folder):
    named_by_folder("/data/runs/probe-7b")
    assert lmstash_cli("prune", "--model", "probe-7b", "--kind", "activations", "--yes").code == 0
    assert kept(folder) == 5  # the others, and what the model is called
    outcome = lmstash_cli("prune", "--model", "probe-8b", "--yes")
    assert outcome.code == 0
    assert "no model here is called 'probe-8b'" in outcome.err
    assert "probe-7b, tiny" in outcome.err
    assert kept(folder) == 5
