"""The harness's own command line, with a stash in place of its cache.

Its arguments mean what they mean: `--use_cache PREFIX` names the folder, and without it the stash in force is used.
Only `--cache_requests` has questions built anew: what the harness keeps of them does not follow an edited task, and is
a pickle, which may run code when it is loaded. Building them takes little beside a model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import lm_eval.evaluator

from lmstash.adapters.lm_eval.cached import Counts
from lmstash.adapters.lm_eval.dropin import CachingLM, close_all, install, uninstall
from lmstash.errors import InvalidArgumentError
from lmstash.events import logger

_OF_LMMS_EVAL = {
    "--no-cache": "run lm_eval itself, without lmstash",
    "--clear-cache": "`lmstash eval --refresh lm_eval ...` computes anew, `lmstash prune --task TASK` removes answers",
}
"""Flags that `lmstash eval lmms_eval` has, and what to do instead."""


def run(argv: Sequence[str], place: str, **options: Any) -> tuple[int, dict[str, int]]:
    """Run `lm_eval ARGV`; returns its exit code, and what became of the requests.

    Args:
        argv: The harness's arguments, without its name.
        place: The stash to use where the arguments name none: a folder or a URI.
        **options: For each model, as `CachedLM` takes.

    Raises:
        InvalidArgumentError: A flag that only lmms-eval's command line has here.
    """
    from lm_eval.__main__ import cli_evaluate

    for flag, instead in _OF_LMMS_EVAL.items():
        if flag in argv:
            raise InvalidArgumentError(f"lmstash eval lm_eval has no {flag}: {instead}")
    evaluate = lm_eval.evaluator.simple_evaluate

    def with_cache(*arguments: Any, **named: Any) -> Any:
        if not named.get("use_cache"):
            named["use_cache"] = place
        if named.get("cache_requests"):
            logger.warning(
                "lmstash: --cache_requests: questions are built anew, since what the harness keeps of them may be stale"
            )
        named |= {"cache_requests": False, "rewrite_requests_cache": False}
        return evaluate(*arguments, **named)

    before, theirs = len(CachingLM.made), sys.argv
    install(**options)
    lm_eval.evaluator.simple_evaluate = with_cache
    sys.argv = ["lm_eval", *argv]
    code = 0
    try:
        cli_evaluate()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = theirs
        lm_eval.evaluator.simple_evaluate = evaluate
        uninstall()
        made, CachingLM.made[before:] = CachingLM.made[before:], []
        counts = Counts()
        for each in made:
            counts += each.counts
        close_all()
    return code, counts.as_dict()
