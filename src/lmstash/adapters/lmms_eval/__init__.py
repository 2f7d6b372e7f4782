"""lmms-eval over an lmstash store: saved requests by the harness's own names, and its response cache.

from lmstash.adapters.lmms_eval import delete_cache, load_from_cache, save_to_cache    # need nothing else
from lmstash.adapters.lmms_eval import ResponseCache

lmms_eval.evaluator.ResponseCache = ResponseCache           # then --use_cache FOLDER, use_cache="FOLDER"
lmstash eval lmms_eval --model ... --tasks ...              # the harness's command line, cached by default
"""

from __future__ import annotations

from lmstash.adapters.lmms_eval.requests import Record, Request
from lmstash.adapters.lmms_eval.response_cache import ResponseCache
from lmstash.adapters.lmms_eval.saved import delete_cache, load_from_cache, save_to_cache

__all__ = ["Record", "Request", "ResponseCache", "delete_cache", "load_from_cache", "save_to_cache"]
