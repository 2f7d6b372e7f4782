"""Where a model is asked: what counts of it, and what is never stored."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from lmstash.adapters.lm_eval.who.addresses import address_of, address_of_client, addresses_in_environment


def test_variables_that_say_an_address_count_and_keys_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    said = {
        "OPENAI_BASE_URL": "http://me:pw@A/v1/",
        "HOSTED_VLLM_API_BASE": "http://b",
        "AZURE_API_VERSION": "2025-03-01",
        "OPENAI_API_KEY": "sk-1",
        "AZURE_OPENAI_API_KEY": "sk-2",
        "HF_ENDPOINT": "http://mirror",
        "ANTHROPIC_BASE_URL": "",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert addresses_in_environment() == {
        "OPENAI_BASE_URL": "http://a/v1",
        "HOSTED_VLLM_API_BASE": "http://b",
        "AZURE_API_VERSION": "2025-03-01",
    }


def test_a_query_counts_as_a_digest_without_its_secrets() -> None:
    assert address_of("http://a/v1?version=2&api_key=one") == address_of("http://a/v1?version=2&api_key=two")
    assert address_of("http://a/v1?version=2") != address_of("http://a/v1?version=3")
    assert "version" not in str(address_of("http://a/v1?version=2"))


def test_a_client_says_its_address_and_version() -> None:
    assert address_of_client(SimpleNamespace(base_url="http://a/")) == "http://a"
    assert address_of_client(SimpleNamespace(base_url="http://a/", _api_version="v")) == ["http://a", "v"]
    assert address_of_client(SimpleNamespace()) is None
