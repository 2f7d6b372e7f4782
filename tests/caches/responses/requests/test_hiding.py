"""Secrets in a request count and are not stored; what only has a name like theirs is."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses.requests.encoding import read_request
from lmstash.caches.responses.requests.hiding import is_secret
from lmstash.codecs.records import decode_record
from lmstash.identity.content.media import Media

FIELDS = [
    *("token", "Token", "session_token", "aws_session_token", "github_token", "private_token", "sessionToken", "jwt"),
    *("credentials", "passwd", "db_passwd", "pwd", "auth", "basic_auth", "auth_header", "authHeader", "signature"),
    *("X-Amz-Signature", "sas", "sas_token", "X-Auth", "X-Token", "api_keys", "cookies", "Ocp-Apim-Subscription-Key"),
    *("hub_token", "slack_token", "service_token", "password2", "api_key_1", "PASSWORD-03"),
]
FRIENDS = [
    *("max_tokens", "tokens", "token_ids", "tokenizer", "token_type", "eos_token", "bos_token", "pad_token"),
    *("stop_token", "image_token", "next_token", "skip_special_tokens", "token_type_ids", "tokenizer_config"),
    *("author", "authors", "authority", "authentic", "credentialed", "signatures", "function_signature", "keys"),
    *("key", "code", "sig", "cwd", "sassy", "oath", "prompt_cache_key", "authored_by", "passport", "data_string"),
]


@pytest.mark.parametrize(
    "request_",
    [
        *({"p": 1, name: "SEKRET1"} for name in FIELDS),
        *({"p": 1, "inner": [{name: ["SEKRET1"]}]} for name in FIELDS[:8]),
        {"headers": [("X-Auth", "SEKRET1")]},
        {"headers": [["X-Token", "SEKRET1"], ["session-token", "SEKRET1"]]},
        {"auth": ("user", "SEKRET1")},
        {"headers": [(b"Authorization", b"SEKRET1")]},
        {"headers": {b"authorization": b"SEKRET1", b"x-api-key-2": "SEKRET1"}},
        {"headers": [{"name": "Authorization", "value": "SEKRET1"}, {"value": ["SEKRET1"], "key": "X-Auth"}]},
        {"config": [["api_key_2", "SEKRET1"]]},
        {"credentials": {"type": "of_a_service", "what": "SEKRET1"}},
        {"base_url": "https://user:SEKRET1@host/v1"},
        {"base_url": "postgres://SEKRET1@host/v1"},
        {"url": "https://host/v1?model=m&api_key=SEKRET1"},
        {"url": " https://host/v1?API%5Fkey=SEKRET1\n"},
        {"url": "https://host/v1#access_token=SEKRET1"},
        {"url": "https://host/v1?sv=1&sig=SEKRET1"},
        {"url": "https://host/v1?key=SEKRET1"},
        ["https://host/v1?X-Amz-Signature=SEKRET1"],
        "https://user:SEKRET1@host/v1",
    ],
)
def test_a_secret_counts_and_is_not_stored(tmp_path: Path, request_: Any) -> None:
    with lmstash.open(tmp_path, trust_env=False, strict=True) as stash:
        responses = stash.responses(model="m", urls="trust")
        other = ast.literal_eval(repr(request_).replace("SEKRET1", "SEKRET2"))
        for many in (False, True):
            assert responses.put_many([request_], ["a"]) if many else responses.put(request_, "a")
            assert responses.get(request_) == "a"
            assert responses.get_many([request_, other]) == ["a", lmstash.caches.responses.MISSING]
        text = read_request(request_, urls="trust").text
        shown = decode_record(text, lambda _, plain: Media(plain[0], plain[1], ()))
        assert read_request(shown, urls="trust").text == text
    files = [each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()]
    assert not any(b"SEKRET1" in each for each in files)


@pytest.mark.parametrize(
    "request_",
    [
        *({"p": 1, name: "shown"} for name in FRIENDS),
        {"tools": [{"parameters": {"properties": {"token": {"type": "string", "description": "shown"}}}}]},
        {"tools": [{"parameters": {"properties": {"auth": {"anyOf": [{"const": "shown"}]}}}}]},
        {"choices": ["token", "shown"], "stop": [["signature", "shown"]]},
        {"token": 7, "auth": None, "x": "shown"},
        {"password": None, "secret": False},
        {"rows": [{"name": "colour", "value": "shown"}, {"name": "token", "value": "shown"}]},
        {"url": "https://host/v1?model=shown&page=2#part"},
        {"url": "https://host/shown@home?email=me@host"},
        {"prompt": "https://user:pw@host?api_key=x is shown"},
        {"prompt": "see https://host?api_key=shown"},
    ],
)
def test_what_is_no_secret_is_stored_as_it_is(request_: Any) -> None:
    written = json.dumps(dict(sorted(request_.items())), separators=(",", ":"))
    assert read_request(request_).text == written.encode()


def test_names_of_secrets() -> None:
    assert [name for name in FIELDS if not is_secret(name)] == []
    assert [name for name in FRIENDS if is_secret(name)] == []


def test_a_number_that_is_a_secret_counts_and_is_not_stored() -> None:
    texts = [read_request({"password": number}).text for number in (4_815_162_342, 4_815_162_343)]
    assert texts[0] != texts[1]
    assert b"4815162342" not in texts[0]


def test_a_long_text_before_another_one_costs_little_and_is_no_name() -> None:
    passage = "one two three " * 5000
    assert not is_secret(passage)
    assert read_request([passage, "what?"]).text == json.dumps([passage, "what?"], separators=(",", ":")).encode()


def test_a_tag_that_is_a_secret_is_not_stored(tmp_path: Path) -> None:
    with lmstash.open(tmp_path / "stash", strict=True) as stash:
        responses = stash.responses(model="m")
        secrets = {"api_key": "hidden-from-all", "session_token": "too", "config": {"api_key": "hidden-from-all"}}
        secrets["server"] = "https://user:hidden-from-all@host/v1"
        responses.put({"prompt": "x"}, "y", tags={"task": "sums", **secrets})
        (found,) = responses.find(task="sums")
        assert found.tags == {"task": "sums"}
    assert not any(b"hidden-from-all" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
