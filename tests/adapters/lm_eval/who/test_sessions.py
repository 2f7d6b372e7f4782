"""HTTP sessions and tables that hang on a model."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("requests")
pytest.importorskip("httpx")
import httpx
import requests
from lm_eval.models.huggingface import HFLM

from lmstash.adapters.lm_eval.who.code_of import described
from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.adapters.lm_eval.who.own_names import Followed
from lmstash.adapters.lm_eval.who.sessions import session_told
from lmstash.errors import UnsupportedModelError

from ..conftest import tiny_model


def of_requests(**attributes: Any) -> Any:
    made = requests.Session()
    for name, value in attributes.items():
        if name == "headers":
            made.headers.update(value)
        else:
            setattr(made, name, value)
    return made


SAME: dict[str, tuple[Any, Any]] = {
    "requests": (of_requests(), of_requests(auth=("me", "secret"), verify=False, headers={"Authorization": "b"})),
    "httpx": (httpx.Client(), httpx.Client(timeout=3, headers={"Authorization": "b"}, verify=False)),
    "httpx.AsyncClient": (httpx.AsyncClient(), httpx.AsyncClient(timeout=3)),
}
OTHERS: dict[str, tuple[Any, Any]] = {
    "headers": (of_requests(headers={"X-Model": "1"}), of_requests(headers={"X-Model": "2"})),
    "params": (of_requests(params={"version": "1"}), of_requests(params={"version": "2"})),
    "address": (httpx.Client(base_url="http://a"), httpx.Client(base_url="http://b")),
    "headers of httpx": (httpx.Client(headers={"X-Model": "1"}), httpx.Client(headers={"X-Model": "2"})),
    "params of httpx": (httpx.Client(params={"version": "1"}), httpx.Client(params={"version": "2"})),
}
FOREIGN: dict[str, Any] = {
    "hook": of_requests(hooks={"response": [print]}),
    "auth": of_requests(auth=SimpleNamespace()),
    "method": of_requests(request=print),
    "adapter": of_requests(adapters={"http://": SimpleNamespace()}),
    "transport": httpx.Client(transport=httpx.MockTransport(print)),
    "hook of httpx": httpx.Client(event_hooks={"request": [print]}),
    "subclass": type("Session", (requests.Session,), {"__module__": __name__})(),
    "something else": httpx.Limits(),
}


def told(value: Any) -> Any:
    return described({"held": value}, frozenset(), Followed("lm_eval"))


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_how_patiently_and_as_whom_it_is_asked_does_not_count(one, other):
    assert told(one) == told(other)
    assert session_told(one) is not None


@pytest.mark.parametrize(("one", "other"), OTHERS.values(), ids=OTHERS)
def test_what_is_sent_along_counts_and_does_not_show(one, other):
    assert told(one) != told(other)
    assert "X-Model" not in str(told(one))


@pytest.mark.parametrize("session", FOREIGN.values(), ids=FOREIGN)
def test_what_does_something_of_somebody_s_own_is_not_told(session):
    assert session_told(session) is None


def test_a_session_of_aiohttp_is_told():
    aiohttp = pytest.importorskip("aiohttp")

    async def look(**options: Any) -> Any:
        async with aiohttp.ClientSession(**options) as session:
            return session_told(session)

    assert asyncio.run(look()) == asyncio.run(look()) != asyncio.run(look(headers={"X-Model": "1"}))
    own = type("Own", (aiohttp.ClientRequest,), {"__module__": __name__})
    assert asyncio.run(look(request_class=own)) is None


def test_a_client_that_asks_by_a_plain_session_counts_by_both():
    openai = pytest.importorskip("openai")

    def look(**options: Any) -> Any:
        return told(openai.OpenAI(base_url="http://a/v1", api_key="k", http_client=httpx.Client(**options)))

    assert look(timeout=3) == look() != look(headers={"X-Model": "1"})
    with pytest.raises(UnsupportedModelError, match="whom it asks"):
        look(transport=httpx.MockTransport(print))


def test_a_data_set_counts_by_its_content():
    datasets = pytest.importorskip("datasets")

    def make(text: str = "one", n: int = 3) -> Any:
        return datasets.Dataset.from_list([{"text": text}] * n)

    one = told(make())
    assert one == told(make())
    for other in (make("two"), make(n=4), make().select([0, 1]), make().with_format("numpy")):
        assert one != told(other)


def test_a_table_of_pandas_counts_by_its_content():
    pandas = pytest.importorskip("pandas")
    tables = [pandas.DataFrame({"text": [each] * 3}) for each in ("one", "one", 1, "two")]
    assert told(tables[0]) == told(tables[1])
    assert len({str(told(each)) for each in tables}) == 3
    held = tables[0]
    held.loc[1, "text"] = "two"
    assert told(held) != told(tables[1])
    assert told(tables[1]["text"]) != told(tables[3]["text"])


def test_types_whose_module_is_no_text_are_described():
    pyarrow = pytest.importorskip("pyarrow")
    kind = type(pyarrow.lib.Table.to_batches)
    assert told([kind, type(kind)]) is not None


def test_code_of_data_sets_is_not_followed_into_other_packages(tokenizer):
    datasets = pytest.importorskip("datasets")

    class Mine(HFLM):
        def examples(self) -> Any:
            return datasets.Dataset

    look = who_answers(Mine(pretrained=tiny_model(), tokenizer=tokenizer)).look()
    code: Any = look.components["code"]
    assert not [each for each in code if each.startswith("fsspec")]
