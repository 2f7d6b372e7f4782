"""Somebody's own code may read what transformers' models never look at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

import lmstash
from lmstash.identity.models.watch import watch_model

VARIABLE = "LMSTASH_TEST_STEER"


class Wrapped(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module, config: Any) -> None:
        super().__init__()
        self.inner = inner
        self.config = config

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * (self.config.task_specific_params or {}).get("alpha", 1.0)


class Named(Wrapped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * float(os.environ.get("LMSTASH_TEST_STEER", "1"))


class NamedElsewhere(Wrapped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * read(VARIABLE)


class NamedInParts(Wrapped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * read("LMSTASH_TEST_" + "steer".upper())


class NamedByItself(Wrapped):
    def __init__(self, inner: torch.nn.Module, config: Any) -> None:
        super().__init__(inner, config)
        self.variable = "LMSTASH_TEST_STEER"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * read(self.variable)


def read(name: str) -> float:
    return float(os.getenv(name, "1"))


def wrap(model: Any, kind: type[Wrapped]) -> Any:
    model.model.layers[0].mlp = kind(model.model.layers[0].mlp, model.config)
    return model


FIELDS = {
    "task_specific_params": {"alpha": 3.0},
    "id2label": {0: "a", 1: "b", 2: "c"},
    "_name_or_path": "elsewhere",
    "dtype": torch.bfloat16,
}


@pytest.mark.parametrize("field", FIELDS)
def test_all_of_a_configuration_counts_where_somebodys_code_may_read_it(build_llama: Any, field: str) -> None:
    theirs, mine = build_llama(), wrap(build_llama(), Wrapped)
    watches = [watch_model(each) for each in (theirs, mine)]
    before = [each.recognise().hex for each in watches]
    for each in (theirs, mine):
        setattr(each.config, field, FIELDS[field])
    after = [each.recognise().hex for each in watches]
    assert after == [each.refresh().hex for each in watches]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert lmstash.fingerprint(theirs).hex == after[0]
    assert lmstash.fingerprint(mine).hex == after[1]


def test_a_function_of_ones_own_in_a_layer_of_transformers_is_somebodys_code(
    build_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, theirs = build_llama(), LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: theirs(self, x) * len(self.config.id2label))
    before = lmstash.fingerprint(model).hex
    model.config.id2label = {0: "a"}
    assert lmstash.fingerprint(model).hex != before


@pytest.mark.parametrize("kind", [Named, NamedElsewhere, NamedInParts, NamedByItself])
def test_variables_of_the_environment_that_its_code_names_count(
    build_llama: Any, monkeypatch: pytest.MonkeyPatch, kind: type[Wrapped]
) -> None:
    model = wrap(build_llama(), kind)
    monkeypatch.delenv(VARIABLE, raising=False)
    watch = watch_model(model)
    seen = [watch.recognise().hex]
    for value in ("2", "3"):
        monkeypatch.setenv(VARIABLE, value)
        seen.append(watch.recognise().hex)
        assert watch.refresh().hex == lmstash.fingerprint(model).hex == seen[-1]
    assert len({*seen}) == 3
    monkeypatch.delenv(VARIABLE)
    assert watch.recognise().hex == seen[0]


def test_other_variables_do_not_count_and_values_are_not_kept(
    build_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [wrap(build_llama(), kind) for kind in (Wrapped, Named)]
    before = [lmstash.fingerprint(each).hex for each in models]
    monkeypatch.setenv("LMSTASH_TEST_OTHER", "x")
    assert [lmstash.fingerprint(each).hex for each in models] == before
    monkeypatch.setenv(VARIABLE, "not to be read in a store")
    assert lmstash.fingerprint(models[0]).hex == before[0]
    assert "not to be read" not in repr(lmstash.fingerprint(models[1]).describe())


def _by_text(self: Any) -> float:
    with open("scale.txt") as file:
        return float(file.read())


def _by_attribute(self: Any) -> float:
    return float(Path(self.place).read_text())


SCALE_FILE, SCALES = Path("scale.txt"), "scales"


def _by_global(self: Any) -> float:
    return float(SCALE_FILE.read_text())


def _in_a_folder(self: Any) -> float:
    return float((Path(SCALES) / "scale.txt").read_text())


class FromFile(Wrapped):
    def __init__(self, inner: torch.nn.Module, config: Any) -> None:
        super().__init__(inner, config)
        self.place = "scale.txt"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.read()


class ToFile(Wrapped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        with open("log.txt", "a") as log:
            log.write(f"{y.sum()}\n")
        torch.save(y, "last.pt")
        return y


@pytest.mark.parametrize("how", [_by_text, _by_attribute, _by_global, _in_a_folder])
def test_files_that_its_code_names_count_by_what_they_hold(
    build_llama: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scales").mkdir()
    model = wrap(build_llama(), type("FromFile", (FromFile,), {"read": how, "__module__": __name__}))
    watch, seen = watch_model(model), list[str]()
    for value in "232":
        for file in (tmp_path / "scale.txt", tmp_path / "scales" / "scale.txt"):
            file.write_text(value)
        seen.append(watch.recognise().hex)
        assert watch.refresh().hex == lmstash.fingerprint(model).hex == seen[-1]
    assert seen[0] == seen[2] != seen[1]


def test_files_that_its_code_only_writes_to_do_not_count(
    build_llama: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    model = wrap(build_llama(), ToFile)
    watch = watch_model(model)
    before = watch.fingerprint.hex
    for _ in range(2):
        model(input_ids=torch.tensor([[1, 2, 3]]))
        assert watch.recognise().hex == before
    assert watch.unchanged()
