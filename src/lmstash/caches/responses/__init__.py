"""Responses: what a model answered to whole requests, exactly.

`who.py` who answers · `requests/` what is asked, as bytes and as a key · `functions/` calls of a cached function, as
requests · `answers/` what is kept · `single_flight/` one computes, the others wait · `mapping.py` many requests, in
batches · `cache.py` the public class · `exporting.py` answers as JSONL and Parquet.
"""

from lmstash.caches.responses.answers.records import register
from lmstash.caches.responses.answers.shelf import MISSING
from lmstash.caches.responses.cache import Responses

__all__ = ["MISSING", "Responses", "register"]
