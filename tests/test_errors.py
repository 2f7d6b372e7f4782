"""The error tree: its edges, its pickling, and the codes that only grow."""

from __future__ import annotations

import pickle

import pytest

from lmstash import errors
from lmstash.events import DropReason, MissReason

PARENTS = {
    "InvalidArgumentError": {"LmstashError", "ValueError"},
    "NotFoundError": {"LmstashError", "KeyError"},
    "StoreError": {"LmstashError"},
    "StoreUnavailableError": {"StoreError"},
    "CapacityError": {"StoreError"},
    "ReadOnlyError": {"StoreError"},
    "FormatError": {"LmstashError"},
    "CorruptEntryError": {"FormatError"},
    "UnsupportedFormatError": {"FormatError"},
    "MismatchError": {"LmstashError"},
    "InterruptedChangeError": {"LmstashError"},
    "UnsupportedModelError": {"LmstashError"},
    "MissingDependencyError": {"LmstashError", "ImportError"},
    "LmstashError": {"Exception"},
}
# Codes are data that other programs store: this list only grows.
MISS_REASONS = ["absent", "expired", "damaged", "mismatch", "gone", "unavailable", "disabled", "refresh"]
DROP_REASONS = ["too_large", "no_room", "disk_full", "read_only", "unavailable", "disabled", "model_changed"]


def all_errors() -> dict[str, type[Exception]]:
    return {
        name: each
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, Exception) and each.__module__ == errors.__name__
    }


def test_every_edge_of_the_tree_is_the_documented_one():
    found = {name: {base.__name__ for base in each.__bases__} for name, each in all_errors().items()}
    assert found == PARENTS


def test_the_tree_is_drawn_in_the_docstring():
    assert errors.__doc__ is not None
    assert [name for name in all_errors() if name not in errors.__doc__] == []


@pytest.mark.parametrize("name", sorted(PARENTS))
def test_an_error_survives_pickling(name: str):
    error_type = all_errors()[name]
    error = error_type("obstore", "s3") if name == "MissingDependencyError" else error_type("what, on what, what to do")
    back = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(back) is error_type
    assert str(back) == str(error)


def test_a_missing_dependency_says_how_to_install_it():
    assert "pip install 'lmstash[s3]'" in str(errors.MissingDependencyError("obstore", "s3"))


def test_a_name_that_is_not_kept_reads_without_quotes():
    assert str(errors.NotFoundError("no entry")) == "no entry"


def test_reason_codes_are_only_ever_added():
    assert [each.value for each in MissReason][: len(MISS_REASONS)] == MISS_REASONS
    assert [each.value for each in DropReason][: len(DROP_REASONS)] == DROP_REASONS
