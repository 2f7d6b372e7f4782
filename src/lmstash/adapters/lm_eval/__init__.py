"""lm-eval's harness over a stash: evaluations that resume, and never get another model's answers.

lm = CachedLM(HFLM(pretrained="..."), lmstash.open("runs/eval"))       # simple_evaluate(model=lm, ...)
install(); simple_evaluate(..., use_cache="runs/eval")                 # or the harness's own argument
lmstash eval lm_eval --model hf --model_args pretrained=... --tasks ...  # or its own command line

`who/` which model answers · `asking/` what is asked, in which parts, and which answers are kept · `cached.py` the
wrapper · `under_way.py` calls within calls · `generators.py` whether a model drew · `dropin.py` in place of the
harness's cache · `importing.py` its databases, `imported.py` answers from there · `launching.py` its command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmstash.errors import MissingDependencyError

if TYPE_CHECKING:
    from lmstash.adapters.lm_eval.cached import CachedLM
    from lmstash.adapters.lm_eval.dropin import CachingLM, install, uninstall
    from lmstash.adapters.lm_eval.importing import import_caching_db

_WHERE = {
    "CachedLM": "cached",
    "CachingLM": "dropin",
    "install": "dropin",
    "uninstall": "dropin",
    "import_caching_db": "importing",
}

__all__ = ["CachedLM", "CachingLM", "import_caching_db", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "lm_eval":
            raise
        raise MissingDependencyError("lm-eval", "eval") from error
