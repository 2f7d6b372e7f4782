"""Commands that check: verify, doctor, why."""

from __future__ import annotations

import pytest

import lmstash
from lmstash.codecs.records import encode_record
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.disk.files.folder import Folder


def damage(folder) -> None:
    """Flip one byte of the text kept with one activation."""
    for path in (folder / "segments").glob("*.seg"):
        content = bytearray(path.read_bytes())
        if (at := content.find(b"cat sat")) >= 0:
            content[at] ^= 0xFF
            path.write_bytes(content)


def test_verify_of_a_sound_stash_is_code_0(lmstash_cli):
    outcome = lmstash_cli("verify")
    assert outcome.code == 0
    assert "4 entries" in outcome.out
    assert "all good" in outcome.out


def test_verify_finds_damage_and_repairs_it(lmstash_cli, folder):
    damage(folder)
    outcome = lmstash_cli("verify", "--json")
    assert outcome.code == 1
    assert outcome.data["ok"] is False
    assert len(outcome.data["damaged"]) == 1
    assert f"lmstash verify --repair --dir {folder}" in lmstash_cli("verify").err
    assert lmstash_cli("verify", "--repair").code == 1
    assert lmstash_cli("verify").code == 0


def findings(lmstash_cli) -> dict[str, dict]:
    return {each["check"]: each for each in lmstash_cli("doctor", "--json").data["findings"]}


def test_doctor_of_a_sound_stash_is_code_0(lmstash_cli):
    outcome = lmstash_cli("doctor")
    assert outcome.code == 0
    assert "SQLite" in outcome.out
    assert "4 entries" in outcome.out


def test_doctor_of_a_folder_that_is_not_there(lmstash_cli, tmp_path):
    outcome = lmstash_cli("doctor", place=tmp_path / "nothing")
    assert outcome.code == 0
    assert "does not exist" in outcome.out
    assert not (tmp_path / "nothing").exists()


def test_doctor_of_what_is_no_folder(lmstash_cli, tmp_path):
    (tmp_path / "file").write_text("mine")
    outcome = lmstash_cli("doctor", place=tmp_path / "file")
    assert outcome.code == 1
    assert "is not a folder" in outcome.out


def test_looking_at_a_stash_without_index_says_how_to_rebuild_it(lmstash_cli, folder):
    for name in ("index.db-wal", "index.db-shm", "index.db"):
        (folder / name).unlink(missing_ok=True)
    outcome = lmstash_cli("info")
    assert outcome.code == 1
    assert f"lmstash verify --repair --dir {folder}" in outcome.err
    assert lmstash_cli("verify", "--repair").code == 0
    assert lmstash_cli("info", "--json").data["entries"] == 4


def test_doctor_names_files_that_others_may_read(lmstash_cli, folder):
    (folder / "index.db").chmod(0o644)
    found = findings(lmstash_cli)["permissions"]
    assert found["level"] == "bad"
    assert "chmod" in found["advice"]


def test_doctor_finds_a_lost_segment(lmstash_cli, folder):
    next((folder / "segments").glob("*.seg")).unlink()
    assert findings(lmstash_cli)["segments"]["level"] == "bad"
    assert lmstash_cli("doctor").code == 1


def test_doctor_finds_a_short_segment(lmstash_cli, folder):
    path = max((folder / "segments").glob("*.seg"), key=lambda each: each.stat().st_size)
    path.write_bytes(path.read_bytes()[:100])
    assert "shorter" in findings(lmstash_cli)["segments"]["detail"]


def test_doctor_takes_what_others_remove_meanwhile_for_no_damage(lmstash_cli, folder, monkeypatch):
    real, asked = Folder.segment_names, []
    other = lmstash.open(folder)

    def names_of_before(self):
        names = real(self)
        if self is not other.store._folder:
            asked.append(len(names))
            other.clear()  # as another process may, between two looks of ours
            other.store.put(bytes([len(asked)] * 32), b"value", namespace=f"user/{len(asked)}")
        return names

    monkeypatch.setattr(Folder, "segment_names", names_of_before)
    outcome = lmstash_cli("doctor")
    other.close()
    assert outcome.code == 0, outcome
    assert len(asked) >= 4
    assert min(asked) > 0


@pytest.mark.parametrize("content", [None, b"not a database, but long enough to look like one" * 100])
def test_doctor_finds_a_missing_or_damaged_index(lmstash_cli, folder, content):
    for name in ("index.db-wal", "index.db-shm", "index.db"):
        (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / "index.db").write_bytes(content)
    found = findings(lmstash_cli)["index"]
    assert (found["level"], found["advice"]) == ("bad", f"Run: lmstash verify --repair --dir {folder}")


def test_doctor_tells_that_caching_is_switched_off(lmstash_cli, monkeypatch):
    monkeypatch.setenv("LMSTASH_DISABLE", "1")
    assert findings(lmstash_cli)["disable"]["level"] == "note"


def test_doctor_lists_strangers_files(lmstash_cli, folder):
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt" in findings(lmstash_cli)["other files"]["detail"]


def test_doctor_finds_a_stash_written_by_a_newer_version(lmstash_cli, folder):
    (folder / "stash.json").write_text('{"format": 99}')
    assert findings(lmstash_cli)["format"]["level"] == "bad"


def test_why_a_kept_key_hits(lmstash_cli, writes):
    outcome = lmstash_cli("why", writes[0].key.hex())
    assert outcome.code == 0
    assert "hit" in outcome.out


def test_why_an_unknown_key_misses(lmstash_cli):
    outcome = lmstash_cli("why", "ff" * 32)
    assert outcome.code == 1
    assert "absent" in outcome.out


def test_why_a_damaged_entry_misses(lmstash_cli, folder, writes):
    path = next(p for p in (folder / "segments").glob("*.seg") if b"cat sat" in p.read_bytes())
    content = bytearray(path.read_bytes())
    at = content.find(b"".join(bytes(each) for each in writes[0].value)[-64:])
    content[at] ^= 0xFF
    path.write_bytes(content)
    outcome = lmstash_cli("why", writes[0].key.hex())
    assert outcome.code == 1
    assert "damaged" in outcome.out


def test_why_an_expired_entry_misses(lmstash_cli, folder):
    with lmstash.open(folder, strict=True) as stash:
        stash.store.put(b"t" * 32, b"v", ttl_seconds=0.001)
    outcome = lmstash_cli("why", (b"t" * 32).hex())
    assert outcome.code == 1
    assert "expired" in outcome.out or "absent" in outcome.out


def test_why_names_the_one_component_that_differs(lmstash_cli, writes):
    data = lmstash_cli("why", "--prompt", "The cat sat on the mat.", "--layer", "4", "--pool", "last", "--json").data
    assert data["hit"] is False
    assert [each["name"] for each in data["differences"]] == ["layer"]
    assert data["differences"][0]["asked"] == "4"
    assert data["nearest"] in {writes[0].key.hex(), writes[1].key.hex()}


def test_why_names_another_model(lmstash_cli):
    question = ["--prompt", "The cat sat on the mat.", "--layer", "3", "--model", "huge", "--json"]
    data = lmstash_cli("why", *question).data
    assert [(each["name"], each["asked"], each["kept"]) for each in data["differences"]] == [("model", "huge", "tiny")]


def test_why_names_the_fields_in_which_two_models_differ(lmstash_cli, folder):
    kept = Fingerprint(Key({"config": {"rope_theta": 10000.0}, "transformers": "5.22.0"}), {})
    live = Fingerprint(Key({"config": {"rope_theta": 10000.0}, "transformers": "5.23.0"}), {})
    with lmstash.open(folder, strict=True) as stash:
        for model, each in (("0123456789abcdef", kept), (live.hex[:16], live)):
            value = encode_record(each.describe())
            assert stash.store.put(each.digest, value, namespace="models/all", meta={"model": model})
    question = ["--prompt", "The cat sat on the mat.", "--layer", "3", "--model", live.hex, "--json"]
    found = {each["name"]: (each["asked"], each["kept"]) for each in lmstash_cli("why", *question).data["differences"]}
    assert found["model.transformers"] == ("5.23.0", "5.22.0")
    assert "model.config.rope_theta" not in found


def test_why_finds_the_likest_prompt(lmstash_cli, writes):
    data = lmstash_cli("why", "--prompt", "Another prompt!", "--layer", "7", "--json").data
    assert [each["name"] for each in data["differences"]] == ["prompt"]
    assert data["nearest"] == writes[2].key.hex()


def test_why_of_what_is_kept_says_what_was_not_compared(lmstash_cli):
    outcome = lmstash_cli("why", "--prompt", "The cat sat on the mat.", "--layer", "3", "--pool", "last")
    assert outcome.code == 0
    assert "model, site, storage not compared" in outcome.out


def test_why_takes_one_question(lmstash_cli):
    assert lmstash_cli("why").code == 2
    assert lmstash_cli("why", "ab", "--prompt", "x").code == 2


def test_why_finds_a_layer_among_those_of_one_entry(lmstash_cli, folder):
    key = Key({"layers": [1, 5], "site": "block_out", "pool": "last"})
    meta = {"id": key.describe(), "model": "0123456789abcdef", "name": "tiny", "text": "Two layers."}
    with lmstash.open(folder) as stash:
        stash.store.put(key.digest, b"v", namespace="activations/0123456789abcdef", meta=meta)
    assert lmstash_cli("why", "--prompt", "Two layers.", "--layer", "5").code == 0
    data = lmstash_cli("why", "--prompt", "Two layers.", "--layer", "2", "--json").data
    assert [(each["name"], each["asked"], each["kept"]) for each in data["differences"]] == [("layer", "2", "[1, 5]")]
    assert "block_out 1,5 last" in lmstash_cli("ls", "--text", "Two layers.").out
