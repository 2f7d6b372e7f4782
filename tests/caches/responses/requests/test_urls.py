"""Media by URL: what lies there may change under the same URL, so its text names nothing unless the caller says so."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses import MISSING
from lmstash.caches.responses.requests.encoding import read_request
from lmstash.caches.responses.requests.urls import UnreadUrlError, fetch_media
from lmstash.codecs.records import decode_record
from lmstash.errors import InvalidArgumentError
from lmstash.identity.content.media import Media, media_of
from lmstash.stash import Stash


class Site:
    """A web site whose pages may change."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.kind = "image/png"
        self.together = threading.Barrier(3)
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                if self.path == "/away":
                    self.send_response(302)
                    self.send_header("Location", "file:///etc/passwd")
                    self.end_headers()
                    return
                page = site.pages.get(self.path)
                if self.path.startswith("/together"):
                    site.together.wait(10)
                if page is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", site.kind)
                self.send_header("Content-Length", str(len(page) + (10 if self.path == "/cut" else 0)))
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Site()
    yield made
    made.server.shutdown()
    made.server.server_close()


def chat(url: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
        "temperature": 0,
    }


URL = "https://host/cat.png"
PARTS: list[Any] = [
    chat(URL),
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}], "temperature": 0},
    {"content": [{"type": "audio_url", "audio_url": {"url": URL}}]},
    {"content": [{"type": "video_url", "video_url": {"url": URL.upper()}}]},
    {"content": [{"type": "input_file", "file_url": URL}]},
    {"content": [{"type": "image", "source": {"type": "url", "url": URL}}]},
    {"content": [{"type": "image", "url": URL}]},
    {"messages": {"type": "image", "source": URL}, "temperature": 0},
    {"content": ({"type": "video", "video": ["https://host/1.png", "https://host/2.png"]},)},
    {"parts": [{"fileData": {"file_uri": "gs://bucket/cat.mp4"}}]},
    {"image_url": URL},
    {"odd": {1: 2, "image_url": URL}},
    {"prompt": "x", "image": URL},
    {"prompt": "x", "video": URL},
    {"prompt": "x", "audio": [URL]},
    {"prompt": "x", "images": (URL,)},
    {"prompt": "x", "image_urls": [URL]},
    {"prompt": "x", "imageUrls": [URL]},
    {"prompt": "x", "init_image": URL},
    {"prompt": "x", "mask-image-src": URL},
    {"prompt": "x", "reference_images_2": [URL]},
    {"prompt": "x", "file_urls": [URL]},
    {"prompt": "x", "video_path": "s3://bucket/cat.mp4"},
    {"prompt": "x", "multi_modal_data": {"image": URL}},
    {"prompt": "x", "image": {"path": URL}},
    {"prompt": "x", "image": {"format": "png", "source": {"s3Location": {"uri": "s3://bucket/cat.png"}}}},
    {"prompt": "x", "image": "odd+scheme://cat"},
    {"messages": [{"role": "user", "content": "x", "images": [URL]}], "temperature": 0},
    {"content": [{"type": "image", "uri": URL}]},
    {"content": [{"type": "image", "src": URL}]},
    {"content": [{"type": "image", "path": URL}]},
    {"content": [{"type": "input_audio", "input_audio": URL}]},
    {"content": [{"type": "input_audio", "input_audio": {"data": URL, "format": "wav"}}]},
]


@pytest.mark.parametrize("request_", PARTS)
def test_media_by_url_is_refused_by_default_and_kept_by_its_text_on_trust(stash: Stash, request_: Any) -> None:
    responses = stash.responses(model="m")
    assert not responses.put(request_, "a cat")
    assert stash.stats.misses["unsupported"] == 1
    trusting = stash.responses(model="m", urls="trust")
    assert trusting.put(request_, "a cat")
    assert trusting.get(request_) == "a cat"
    assert responses.get(request_, MISSING) is MISSING


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": f"what is {URL} about?"},
        {"messages": [{"role": "tool", "content": [{"type": "text", "text": URL}]}], "temperature": 0},
        {"results": [{"title": "Cats", "url": URL}]},
        {"tools": [{"parameters": {"properties": {"image_url": {"type": "string", "description": f"as {URL}"}}}}]},
        {
            "messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
            "temperature": 0,
        },
        {"prompt": URL, "text": URL, "content": URL, "docs": [{"source": URL, "path": URL, "data": URL}]},
        {"image": {"description": URL, "alt": URL}, "image_caption": URL, "media_type": URL},
        {"image": "a red cat", "video": None, "audio": {"voice": "alloy", "format": "wav"}, "images": [1, b"x"]},
        {"document": f"{URL} says so", "file": URL},
    ],
)
def test_a_url_in_text_is_text(stash: Stash, request_: Any) -> None:
    responses = stash.responses(model="m")
    assert responses.put(request_, "a")
    assert responses.get(request_) == "a"


def test_refusal_is_logged_once_and_without_secrets(stash: Stash, caplog: pytest.LogCaptureFixture) -> None:
    responses = stash.responses(model="m")
    with caplog.at_level(logging.WARNING):
        for n in range(3):
            assert responses.get_or_compute(chat(f"https://me:hunter2@host/{n}?sig=hunter2"), lambda: "a") == "a"
    assert len(caplog.records) == 1
    assert "urls='content'" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("how", ["get_or_compute", "map"])
def test_tasks_fetch_media_side_by_side(stash: Stash, site: Site, how: str) -> None:
    responses = stash.responses(model="m", urls="content")
    asked = [chat(f"{site.url}/together/{number}") for number in range(3)]
    for number in range(3):
        site.pages[f"/together/{number}"] = b"picture %d" % number

    async def answer() -> str:
        return "a cat"

    async def answers(batch: list[Any]) -> list[str]:
        return ["a cat"] * len(batch)

    async def main() -> None:
        if how == "map":
            await asyncio.gather(*(responses.map_async([each], answers) for each in asked))
        else:
            await asyncio.gather(*(responses.get_or_compute_async(each, answer) for each in asked))

    asyncio.run(main())
    assert not site.together.broken
    assert stash.stats.puts == 4  # the model's description, too


def test_by_content_a_changed_picture_is_another_request(stash: Stash, site: Site) -> None:
    responses = stash.responses(model="m", urls="content")
    site.pages = {"/cat": b"cat", "/copy": b"cat"}
    asked = chat(f"{site.url}/cat")
    before = repr(asked)
    assert responses.get_or_compute(asked, lambda: "a cat") == "a cat"
    assert responses.get(chat(f"{site.url}/copy")) == "a cat"
    site.pages["/cat"] = b"dog"
    assert responses.get_or_compute(asked, lambda: "a dog") == "a dog"
    site.pages["/cat"] = b"cat"
    assert responses.get(asked) == "a cat"
    site.kind = "text/html"
    assert responses.get(asked, MISSING) is MISSING
    assert repr(asked) == before


def test_what_cannot_be_fetched_is_not_cached(stash: Stash, site: Site) -> None:
    site.pages = {"/cut": b"cut short"}
    responses = stash.responses(model="m", urls="content")
    for path in ("/absent", "/cut", "/away"):
        assert not responses.put(chat(f"{site.url}{path}"), "a")
    assert not responses.put(chat("gs://bucket/cat.png"), "a")
    assert stash.stats.misses["unsupported"] == 4


def test_limits(site: Site) -> None:
    site.pages = {"/large": b"x" * 1000}
    assert fetch_media(f"{site.url}/large", most_bytes=1000).facts == ("image/png", 1000)
    with pytest.raises(UnreadUrlError, match="larger than 999"):
        fetch_media(f"{site.url}/large", most_bytes=999)
    with pytest.raises(UnreadUrlError, match=r"takes more than|cannot be read"):
        fetch_media(f"{site.url}/large", most_seconds=1e-9)


def test_a_local_file_url_is_named_by_what_the_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "a cat.png"
    file.write_bytes(b"cat")
    asked = chat(file.as_uri())
    first = read_request(asked, urls="content").text
    file.write_bytes(b"dog!")
    assert read_request(asked, urls="content").text != first


def by_path(path: str) -> list[Any]:
    """Requests that name media by a path."""
    return [
        {"messages": [{"role": "user", "content": [{"type": "image", "image": path}]}], "temperature": 0},
        {"content": [{"type": "image_url", "image_url": {"url": path}}]},
        {"content": [{"type": "video", "video": [path, path]}]},
        {"content": [{"type": "image", "path": path}]},
        {"content": [{"type": "file", "file": path}]},
        {"prompt": "x", "image": path},
        {"prompt": "x", "images": (path,)},
        {"prompt": "x", "image_path": path},
        {"prompt": "x", "audio_file": path},
        {"multi_modal_data": {"image": {"path": path, "bytes": None}}},
        {"prompt": "x", "images": {"front": path}},
        {"prompt": "x", "file_path": path},
        {"prompt": "x", "pdf": path},
        {"prompt": "x", "inputs": [{"type": "local_image", "filename": path}]},
        {"prompt": path, "temperature": 0},
        ["describe", path],
    ]


@pytest.mark.parametrize("number", range(len(by_path(""))))
@pytest.mark.parametrize("urls", ["refuse", "content", "trust"])
def test_a_path_of_media_is_named_by_what_the_file_holds_beside_its_text(
    tmp_path: Path, number: int, urls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"cat")
    (tmp_path / "b.png").write_bytes(b"cat")
    with lmstash.open("memory://", trust_env=False, strict=True) as stash:
        responses = stash.responses(model="m", urls=urls)
        for name in ("a.png", str(tmp_path / "a.png")):
            asked = by_path(name)[number]
            before = repr(asked)
            (tmp_path / "a.png").write_bytes(b"cat")
            assert responses.put(asked, "a cat")
            assert responses.get(asked) == "a cat"
            assert responses.get(by_path(name.replace("a.png", "b.png"))[number], MISSING) is MISSING
            (tmp_path / "a.png").write_bytes(b"a dog")
            assert responses.get_many([asked]) == [MISSING]
            assert repr(asked) == before
        assert all(name in str(next(responses.find()).request) for name in ("a.png", "sha256"))


@pytest.mark.parametrize(
    "asked",
    [
        {"document": "notes.txt"},
        {"file": "data.csv"},
        {"file_path": "data.json"},
        {"attachments": ["f.html"]},
        {"type": "file", "path": "b.txt"},
        {"lora_path": "adapter"},
        {"promptFile": "Makefile"},
        {"filename": "notes"},
        *({name: "notes"} for name in ("path", "file", "filepath", "filePath", "fname")),
        *({name: ["notes", "absent"]} for name in ("paths", "files", "filenames", "input_filepaths")),
        {"path": "notes", "content": None},
        {"tools": [{"type": "text", "path": "notes", "file": "absent"}]},
        {"code": "main.py"},
        {"code": "src.c"},
        ["review", "my main.R"],
        ["summarise", "table.parquet"],
    ],
)
def test_a_file_that_is_named_by_its_path_counts_by_what_it_holds(
    tmp_path: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(each for each in repr(asked).split("'") if (tmp_path / each).suffix or each in FILES)
    Path(name).write_text("one")
    before = read_request(asked).text
    assert read_request(asked).text == before
    Path(name).write_text("other")
    assert read_request(asked).text != before


FILES = ("adapter", "Makefile", "notes")


def test_a_folder_that_is_no_media_is_a_name(tmp_path: Path) -> None:
    asked = {"lora_path": str(tmp_path), "data_file": "~", "prompt": "x"}
    before = read_request(asked).text
    (tmp_path / "adapter.bin").write_bytes(b"weights")
    assert read_request(asked).text == before


def test_a_kept_request_with_a_path_in_it_reads_as_itself(tmp_path: Path) -> None:
    """Or nobody could ask for it again by what an export says, as `lmstash why` does."""
    (tmp_path / "a.png").write_bytes(b"cat")
    for asked in by_path(str(tmp_path / "a.png")):
        text = read_request(asked).text
        assert read_request(decode_record(text, lambda _, plain: Media(plain[0], plain[1], ()))).text == text


def test_a_text_that_is_no_path_of_media_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"cat")
    requests: list[Any] = [
        {"prompt": "see a.png?", "text": "a.png: a cat", "content": ["a.png."], "caption": "file://a.png"},
        {"prompt": "b.png", "text": "x/a.png", "content": ["a.png\n"], "more": ".png", "last": "x" * 5000 + ".png"},
        {"type": "file", "path": "a.png", "content": "what it holds"},
        {"audio": {"array": [0.1], "path": "a.png"}},
        {"image": {"bytes": b"cat", "path": "a.png"}},
        {"image": "a red cat", "images": ["", "a\0b", "\ud800", "x" * 100_000, "data:image/png;base64,AAAA"]},
        {"image": ["file", "a.png", media_of(tmp_path / "a.png")]},
        {"path": "a.png", "content": "what it holds"},
        {"path": ".", "file": "absent", "files": {"a": "here"}, "paths": [], "fname": "x" * 100_000},
    ]
    texts = [read_request(each).text for each in requests]
    (tmp_path / "a.png").unlink()
    assert [read_request(each).text for each in requests] == texts
    assert b"a red cat" in texts[5]


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [{"role": "user", "content": "see main.py"}]},
        {"messages": [{"role": "user", "content": ["see main.py"]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "see main.py"}]}]},
        {"contents": [{"role": "user", "parts": [{"text": "see main.py"}]}]},
    ],
)
def test_what_is_said_in_a_chat_is_not_looked_for_as_a_program(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for: list[Any] = []
    monkeypatch.setattr(os.path, "isfile", lambda path: bool(looked_for.append(path)))
    read_request(asked)
    assert not looked_for
    read_request({"code": "see main.py", "path": "x" * 5000, "file": "main.py"})
    assert looked_for == ["see main.py", "main.py"]


def test_a_path_among_other_media_counts_by_content_and_is_not_taken_for_one_of_two(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"cat")
    made = media_of(file)

    def texts() -> list[bytes]:
        return [read_request({"images": each}).text for each in ([str(file), b"x"], [b"x", str(file)], [str(file)])]

    before = texts()
    assert (
        len({*before, read_request({"images": str(file)}).text, read_request({"images": [str(file), made]}).text}) == 5
    )
    file.write_bytes(b"dog!")
    other = read_request({"images": [str(file), made]}).text  # another picture now than the one behind it
    assert other not in (before[0], read_request({"images": [str(file), media_of(file)]}).text)
    assert not set(before) & set(texts())


def test_a_folder_of_media_is_not_cached(stash: Stash, tmp_path: Path) -> None:
    assert not stash.responses(model="m").put({"prompt": "x", "video": str(tmp_path)}, "a")


def test_another_word_is_refused(stash: Stash) -> None:
    with pytest.raises(InvalidArgumentError, match="refuse, content, trust"):
        stash.responses(model="m", urls="yes")
