"""What a request asks: files by what they hold, and texts that the model is given by what they say."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from lmstash.adapters.lmms_eval.answering.asking import Reader


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders with the same files."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.png").write_bytes(b"pixels")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return [tmp_path / "a", tmp_path / "b"]


def read(folder: Path, context: str = "Q", method: str = "generate_until", **functions: Any) -> Any:
    doc = {"question": "Q", "image": str(folder / "0.png"), "more": [{"mask": str(folder / "0.png")}]}
    lm = SimpleNamespace(task_dict={"t": {"test": [doc]}})
    shown = functions.get("shown", lambda doc: [doc["image"]])
    return Reader(lm, method).read(SimpleNamespace(args=(context, {}, shown, 0, "t", "test")), 0)


def test_files_that_documents_name_may_move(folders: list[Path]) -> None:
    first = read(folders[0])
    assert read(folders[1]) == first
    (folders[1] / "0.png").write_bytes(b"others")
    assert read(folders[1]) != first
    (folders[1] / "0.png").unlink()  # a path without content counts as it is
    assert read(folders[1])["doc"]["image"] == str(folders[1] / "0.png")


def test_a_file_under_another_name_is_another_one(folders: list[Path]) -> None:
    first = read(folders[0])
    (folders[0] / "0.png").rename(folders[0] / "1.png")
    doc = {"question": "Q", "image": str(folders[0] / "1.png"), "more": []}
    lm = SimpleNamespace(task_dict={"t": {"test": [doc]}})
    args = ("Q", {}, lambda doc: [doc["image"]], 0, "t", "test")
    assert Reader(lm, "generate_until").read(SimpleNamespace(args=args), 0)["doc"]["image"] != first["doc"]["image"]


def test_a_path_that_the_model_reads_as_text_counts_whole(folders: list[Path]) -> None:
    one, other = (read(each, context=str(each / "0.png")) for each in folders)
    assert one != other
    one, other = (read(each, shown=lambda doc: [{"type": "text", "text": doc["image"]}]) for each in folders)
    assert one != other


def test_paths_count_whole_where_later_rounds_may_say_them(folders: list[Path]) -> None:
    one, other = (read(each, method="generate_until_multi_round") for each in folders)
    assert one["doc"] != other["doc"]


def test_equal_generation_arguments_are_read_once_and_others_never_for_them(tmp_path: Path) -> None:
    reader, file = Reader(SimpleNamespace(task_dict={}), "generate_until"), tmp_path / "grammar"

    def asked(**options: Any) -> Any:
        return reader.read(SimpleNamespace(args=("Q", options)), 0)["gen_kwargs"]

    until = ["\n"]
    first = asked(until=until, temperature=0)
    until.append("Q")  # as models do
    assert asked(until=["\n"], temperature=0) is first
    assert first == {"until": ["\n"], "temperature": 0}
    seen = [repr(asked(x=x)) for x in (0, 0.0, False, "0", b"0", None, [], (), [0], (0,), [b"0"])]
    assert len(set(seen)) == len(seen)
    raw = numpy.float32(1).tobytes()
    arrays = [raw, numpy.frombuffer(raw, "float32"), numpy.frombuffer(raw, "int32"), numpy.frombuffer(raw, "uint8")]
    assert len({repr(asked(x=each)) for each in arrays}) == len(arrays)
    seen = [repr(asked(grammar=str(file)))]
    for text in ("a", "b"):
        file.write_text(text)
        seen.append(repr(asked(grammar=str(file))))
    assert len(set(seen)) == len(seen)
