"""Responses on the command line: ls, show, why, prune, export, import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lmstash
from lmstash.adapters.openai.recorded import record, to_answer

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stash that keeps responses of two models, and one other value."""
    place = tmp_path / "stash"
    with lmstash.open(place, strict=True) as stash:
        cache = stash.responses(model="provider/m", revision="1", keep_sampled=True)
        cache.put(CHAT, {"choices": [{"message": {"content": "Four."}}]}, tags={"task": "gsm8k", "doc": 7, "run": "r1"})
        cache.put({"prompt": "Paris is", "max_tokens": 3}, " in France", tags={"task": "gsm8k_cot", "tags": ["kept"]})
        cache.put({"prompt": "hot", "temperature": 1}, "one \x1b[31m")
        cache.put({"prompt": "hot", "temperature": 1}, "two")
        stash.responses(model="provider/n").put({"prompt": "Paris is"}, "n's")
        stash.store.put(b"u" * 32, b"x" * 50, namespace="user/me", meta={"text": "Paris is"})
    return place


def key_of(lmstash_cli, *filters: str) -> str:
    [entry] = lmstash_cli("ls", "--json", "--kind", "responses", *filters).data["entries"]
    return entry["key"]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["--kind", "responses"], 5),
        (["--task", "gsm8k"], 1),
        (["--task", "gsm8k*"], 2),
        (["--doc", "7"], 1),
        (["--run", "r1", "--task", "mmlu"], 0),
        (["--tag", "task=gsm8k*"], 2),
        (["--tag", "kept"], 1),
        (["--model", "provider/m", "--kind", "responses"], 4),
        (["--model", "provider/n"], 2),  # its description, too
        (["--grep", "Paris"], 3),
        (["--kind", "responses", "--grep", "Paris", "--model", "provider/m"], 1),
        (["--grep", "Four."], 1),
        (["--grep", "nothing like it"], 0),
    ],
)
def test_ls_filters(lmstash_cli, filters, count):
    data = lmstash_cli("ls", "--json", *filters).data
    assert data["total"] == count == len(data["entries"])


def test_ls_for_people_shows_model_task_and_first_words(lmstash_cli):
    lines = lmstash_cli("ls", "--kind", "responses").out.splitlines()
    [line] = [each for each in lines if "gsm8k 7" in each]
    assert " m " in line
    assert "Two and two? → Four." in line
    assert any("Paris is → in France" in each for each in lines)
    assert "\x1b" not in "".join(lines)


def test_models_are_known_by_the_digits_of_their_fingerprints(lmstash_cli):
    [entry] = lmstash_cli("ls", "--json", "--task", "gsm8k").data["entries"]
    digits = entry["namespace"].removeprefix("responses/")
    assert lmstash_cli("ls", "--json", "--kind", "responses", "--model", digits[:8]).data["total"] == 4


def test_show_prints_request_and_answer(lmstash_cli):
    key = key_of(lmstash_cli, "--task", "gsm8k")
    outcome = lmstash_cli("show", key[:12])
    assert outcome.code == 0
    for words in ("request", '"content": "Two and two?"', "answer", '"content": "Four."', "gsm8k", "m\n"):
        assert words in outcome.out
    entry = lmstash_cli("show", key, "--json").data["entry"]
    assert entry["request"] == CHAT
    assert entry["answer"]["choices"][0]["message"]["content"] == "Four."


def test_show_lets_no_control_characters_through(lmstash_cli):
    assert "\x1b" not in lmstash_cli("show", key_of(lmstash_cli, "--grep", "[31m")).out


def why(lmstash_cli, request, *rest):
    outcome = lmstash_cli("why", "--json", "--request", json.dumps(request), *rest)
    assert outcome.code == (0 if outcome.data["hit"] else 1)
    return outcome.data


def test_why_of_a_request_that_is_kept(lmstash_cli):
    for rest in ([], ["--model", "provider/m"]):
        assert why(lmstash_cli, {"max_tokens": 3, "prompt": "Paris is"}, *rest)["hit"]
    assert why(lmstash_cli, {"prompt": "hot", "temperature": 1}, "--occurrence", "1")["hit"]


@pytest.mark.parametrize(
    ("request_", "rest", "names"),
    [
        ({"prompt": "Paris is", "max_tokens": 4}, ["--model", "provider/m"], {"max_tokens": ("4", "3")}),
        ({"prompt": "Paris is", "max_tokens": 3.0}, [], {"max_tokens": ("3.0 (float)", "3 (int)")}),
        ({"prompt": "Paris is", "max_tokens": 3, "stop": "a"}, [], {"stop": ("a", "absent")}),
        ({"prompt": "hot", "temperature": 1}, ["--occurrence", "5"], {"occurrence": ("5", "0")}),
        (
            {"messages": [CHAT["messages"][0], {"role": "user", "content": "Two and three?"}]},
            [],
            {"messages[1].content": ("Two and three?", "Two and two?")},
        ),
    ],
)
def test_why_names_the_field_in_which_the_nearest_request_differs(lmstash_cli, request_, rest, names):
    data = why(lmstash_cli, request_, *rest)
    assert {each["name"]: (each["asked"], each["kept"]) for each in data["differences"]} == names


def test_why_names_the_model_and_in_what_it_differs(lmstash_cli):
    data = why(lmstash_cli, CHAT, "--model", "provider/n")
    found = {each["name"]: (each["asked"], each["kept"]) for each in data["differences"]}
    assert found["model"] == ("provider/n", "m")
    assert found["model.revision"] == ("None", "1")
    other = {each["name"]: each for each in why(lmstash_cli, CHAT, "--model", "0123456789abcdef")["differences"]}
    assert other["model"]["kept"].endswith(" (m)")  # digits beside digits


def test_why_reads_a_request_from_a_file_and_says_when_it_cannot(lmstash_cli, tmp_path):
    (tmp_path / "request.json").write_text(json.dumps(CHAT))
    assert lmstash_cli("why", "--request", f"@{tmp_path}/request.json").code == 0
    for wrong in ("{", "@/nowhere", '{"$nonsense": 1}'):
        outcome = lmstash_cli("why", "--request", wrong)
        assert outcome.code == 2
        assert outcome.err


def test_prune_by_a_named_tag(lmstash_cli):
    assert lmstash_cli("prune", "--tag", "task=gsm8k*", "--yes", "--json").data["removed"]["entries"] == 2
    assert lmstash_cli("ls", "--json", "--kind", "responses").data["total"] == 3


@pytest.mark.parametrize(
    ("conditions", "removed"),
    [
        (["--task", "gsm8k*"], 2),
        (["--task", "gsm8k", "--doc", "7"], 1),
        (["--run", "r2"], 0),
        (["--grep", "Four."], 1),
        (["--grep", "Paris"], 3),  # one of them no response
        (["--kind", "responses", "--grep", "Paris", "--model", "provider/n"], 1),
        (["--kind", "user", "--grep", "Paris"], 1),
        (["--kind", "responses", "--larger", "1MB"], 0),
    ],
)
def test_prune_takes_the_conditions_of_ls_and_removes_what_ls_lists(lmstash_cli, conditions, removed):
    listed = {entry["key"] for entry in lmstash_cli("ls", "--json", *conditions).data["entries"]}
    before = {entry["key"] for entry in lmstash_cli("ls", "--json").data["entries"]}
    assert lmstash_cli("prune", *conditions, "--dry-run", "--json").data["would_remove"]["entries"] == removed
    assert lmstash_cli("prune", *conditions, "--yes", "--json").data["removed"]["entries"] == removed == len(listed)
    assert {entry["key"] for entry in lmstash_cli("ls", "--json").data["entries"]} == before - listed


def test_export_and_import(lmstash_cli, tmp_path):
    out = tmp_path / "out.jsonl"
    assert lmstash_cli("export", "responses", "--out", str(out), "--json").data["rows"] == 5
    outcome = lmstash_cli("import", "responses", str(out), "--json", place=tmp_path / "other")
    assert (outcome.code, outcome.data["report"]["taken"]) == (0, 5)
    with lmstash.open(tmp_path / "other") as stash:
        assert stash.responses(model="provider/m", revision="1").get({"prompt": "Paris is", "max_tokens": 3})
    again = lmstash_cli("ls", "--json", "--kind", "responses", "--model", "provider/m", place=tmp_path / "other")
    assert again.data["total"] == 4


def test_export_of_what_meets_the_filters_to_stdout(lmstash_cli):
    outcome = lmstash_cli("export", "responses", "--out", "-", "--task", "gsm8k*", "--model", "provider/m")
    assert sorted(json.loads(line)["task"] for line in outcome.out.splitlines()) == ["gsm8k", "gsm8k_cot"]


def test_import_of_rows_that_lead_to_no_key_is_code_1(lmstash_cli, tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n")
    assert lmstash_cli("import", "responses", str(tmp_path / "x.jsonl"), place=tmp_path / "other").code == 1
    assert lmstash_cli("import", "responses", str(tmp_path / "none"), place=tmp_path / "other").code == 1


def keep_of_a_server(folder: Path, path: str, body: dict, answer: bytes, kind: str = "application/json") -> None:
    with lmstash.open(folder, strict=True) as stash:
        kept = to_answer(record(200, [("content-type", kind)], answer))
        request = body | {"lmstash": {"path": path}}
        stash.responses(model="http://localhost/v1 m", keep_sampled=True).put(request, kept)


STREAM = b"".join(
    b"data: " + json.dumps({"choices": [{"delta": {"content": each}}]}).encode() + b"\n\n" for each in ("Fi", "ve.")
)


@pytest.mark.parametrize(
    ("path", "answer", "kind", "said"),
    [
        ("/chat/completions", b'{"choices": [{"message": {"content": "Five."}}]}', "application/json", "→ Five."),
        ("/chat/completions", STREAM + b"data: [DONE]\n\n", "text/event-stream", "→ Five."),
        ("/responses", b'{"output": [{"content": [{"text": "Five."}]}]}', "application/json", "→ Five."),
        (
            "/responses",
            b'event: x\ndata: {"type": "response.output_text.delta", "delta": "Five."}\n\n',
            "text/event-stream",
            "→ Five.",
        ),
        ("/chat/completions", b"no JSON", "application/json", "→ no JSON"),
        ("/embeddings", b'{"data": []}', "application/json", '→ {"data": []}'),
    ],
)
def test_answers_of_servers_are_shown_by_what_they_say(lmstash_cli, folder, path, answer, kind, said):
    keep_of_a_server(folder, path, {"model": "m", "input": "Two and three?"}, answer, kind)
    assert said in lmstash_cli("ls", "--grep", "Two and three?").out
    assert "x-lmstash" not in lmstash_cli("show", key_of(lmstash_cli, "--grep", "Two and three?")).out


@pytest.mark.parametrize(("more", "hit"), [({}, True), ({"user": "u", "stream": False}, True), ({"seed": 3}, False)])
def test_why_takes_the_body_of_a_request_to_a_server(lmstash_cli, folder, more, hit):
    body = {"model": "m", "messages": [{"role": "user", "content": "Two and three?"}]}
    keep_of_a_server(folder, "/chat/completions", body, b"{}")
    told = lmstash_cli("why", "--json", "--request", json.dumps(body | more)).data
    assert told["hit"] is hit
    assert [each["name"] for each in told["differences"]] == ([] if hit else [*more])
