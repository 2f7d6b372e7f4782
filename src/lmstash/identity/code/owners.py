"""Whose code a module is: yours, an installed package's, or Python's own."""

from __future__ import annotations

import sys
import sysconfig
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

BY_NAME = {*sys.stdlib_module_names, "torch", "numpy", "huggingface_hub", "tqdm", "builtins"} - {"__main__"}
"""Whose code counts by name only."""
KNOWN_PACKAGES = frozenset(
    {
        *BY_NAME, "transformers", "peft", "accelerate", "safetensors",
        "aqlm", "auto_gptq", "awq", "bitsandbytes", "compressed_tensors", "eetq", "gptqmodel", "hqq", "optimum",
        "quanto", "torchao", "vptq",
        "causal_conv1d", "einops", "fla", "flash_attn", "kernels", "mamba_ssm", "triton", "xformers",
    }
)  # fmt: skip
"""Packages whose layers and functions know no configuration, or read of it what counts anyway."""
_READ_OTHERWISE = frozenset({*BY_NAME, "transformers"})
_GENERATED = ("<string>", "<frozen ", "<eval_with_key>", "<__array_function__")
"""Begins what code is called that dataclasses, Python and torch make."""


def owner_of(module: str | None) -> str:
    """Return the package that a module belongs to."""
    name = str(module)
    return "remote" if name.startswith("transformers_modules") else name.partition(".")[0]


def is_foreign(module: str) -> bool:
    """Return whether a module is of those that have to be read, or pinned."""
    return owner_of(module) not in _READ_OTHERWISE


def defined_in(code: Any) -> str:
    """Return the module whose code a function or class is."""
    if isinstance(code, FunctionType):
        return str(code.__globals__.get("__name__"))
    return str(getattr(code, "__module__", None))


def is_of_its_file(function: FunctionType) -> bool:
    """Return whether a function's code was written in its module's file, and not put there (`f.__code__ = ...`).

    What packages make of texts of their own is believed; what was typed is not.
    """
    written = function.__code__.co_filename
    path = getattr(sys.modules.get(defined_in(function)), "__file__", None)
    return path is None or written == path or written.startswith(_GENERATED) or not path.endswith(".py")


def is_installed(module: str) -> bool:
    """Return whether a module belongs to an installed package, whose version pins what its globals hold."""
    if module not in sys.modules:  # it may be loaded later
        return not is_foreign(module)
    return _lies_among_packages(module)


@lru_cache(maxsize=4096)
def _lies_among_packages(module: str) -> bool:
    path = str(getattr(sys.modules.get(module), "__file__", ""))
    return not is_foreign(module) or is_installed_file(path)


def is_installed_file(path: str) -> bool:
    """Return whether a file lies where packages are installed."""
    return "site-packages" in path or "dist-packages" in path


def is_of_lmstash(value: Any) -> bool:
    """Return whether a value is an object of lmstash's own, or a method of one: a cache, a stash, a fingerprint."""
    return _is_class_of_lmstash(type(value.__self__ if type(value) is MethodType else value))


@lru_cache(maxsize=1024)
def _is_class_of_lmstash(kind: type) -> bool:
    return any(owner_of(base.__module__) == "lmstash" for base in kind.__mro__)


def hides_python(package: str) -> bool:
    """Return whether a package that goes by a name of Python's own is somebody's file: `code.py`, `calendar.py`."""
    if package not in sys.stdlib_module_names:
        return False
    if package in sys.modules:
        path = getattr(sys.modules[package], "__file__", None)
    else:
        path = getattr(find_spec(package), "origin", None)
    return path not in (None, "built-in", "frozen") and _is_beside_python(path)


@lru_cache(maxsize=1024)
def _is_beside_python(path: str) -> bool:
    if is_installed_file(path):
        return False
    return not path.startswith(tuple(filter(None, map(sysconfig.get_path, ("stdlib", "platstdlib")))))


@lru_cache(maxsize=1024)
def version_of(package: str) -> str | None:
    """Return what a package says its version is, itself or by how it was installed. Costs 0.4 s once, if neither does.

    A name that several packages share (`google`) has the versions of all of them.
    """
    said = getattr(sys.modules.get(package), "__version__", None)
    if isinstance(said, str):
        return "".join(said)  # torch's is a subclass
    return installed_version(package)


@lru_cache(maxsize=1024)
def installed_version(package: str) -> str | None:
    """Return the version that a package was installed as, as `version_of` does; None if nothing says it."""
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):
        sharing = sorted({*_distributions().get(package, ())})
        return " ".join(f"{each} {version(each)}" for each in sharing) or None


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return {name: [*each] for name, each in packages_distributions().items()}
