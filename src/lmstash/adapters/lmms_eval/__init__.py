"""lmms-eval over an lmstash store: saved requests by the harness's own names, and its response cache.

from lmstash.adapters.lmms_eval import delete_cache, load_from_cache, save_to_cache    # need nothing else
from lmstash.adapters.lmms_eval import ResponseCache

lmms_eval.evaluator.ResponseCache = ResponseCache           # then --use_cache FOLDER, use_cache="FOLDER"
lmstash eval lmms_eval --model ... --tasks ...              # the harness's command line, cached by default

`saved_requests/` requests as the harness saves them · `answering/` the response cache · `who/` which model answers ·
`installing.py` ours in the place of the harness's · `launching.py` its command line · `places.py` where things are
kept.
"""

from __future__ import annotations

from lmstash.adapters.lmms_eval.answering.response_cache import ResponseCache
from lmstash.adapters.lmms_eval.saved_requests.requests import Record, Request
from lmstash.adapters.lmms_eval.saved_requests.saved import delete_cache, load_from_cache, save_to_cache

__all__ = ["Record", "Request", "ResponseCache", "delete_cache", "load_from_cache", "save_to_cache"]
