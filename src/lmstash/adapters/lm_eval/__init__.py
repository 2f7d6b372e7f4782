"""lm-eval's harness over a stash: evaluations that resume, and never get another model's answers.

lm = CachedLM(HFLM(pretrained="..."), lmstash.open("runs/eval"))       # simple_evaluate(model=lm, ...)
install(); simple_evaluate(..., use_cache="runs/eval")                 # or the harness's own argument
lmstash eval lm_eval --model hf --model_args pretrained=... --tasks ...  # or its own command line

`identity.py` who answers · `addresses.py` where · `code_of.py` by which code ·
`beside_classes.py` what the harness's classes call · `questions.py` what is asked · `imported.py` what the harness had
kept · `partials.py` results as they come · `reporting.py` whose may be kept then · `running.py` calls in parts ·
`chunks.py` how large · `ranks.py` several processes · `vouching.py` a model that changes ·
`under_way.py` calls within calls · `answers.py` which answers are kept ·
`made_in_calls.py` what it makes when it is needed · `stores.py` by which code · `cached.py` the wrapper ·
`dropin.py` in place of the harness's cache · `importing.py` its databases · `launching.py` its command line.
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
