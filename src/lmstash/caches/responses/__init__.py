"""Responses: what a model answered to whole requests, exactly.

`requests.py` a request as canonical bytes; what in it does not count · `sampling.py` whether it is answered by chance ·
`who.py` who answers · `asking.py` from these to a key · `answers.py` an answer as bytes, its types kept · `shelf.py`
answers in a store · `flights.py` one computes, the others wait · `waiting.py` how, and when not to · `blocking.py`
which thread waits for which · `decorating.py` calls of a cached function; `content.py` what such a call goes by,
`sampling_in_code.py` and `memos.py` what in its code keeps an answer from being kept · `steps.py` what a call does, for
plain and for async programs · `mapping.py` many requests, in batches · `cache.py` the public class.
"""

from lmstash.caches.responses.answers import register
from lmstash.caches.responses.cache import Responses
from lmstash.caches.responses.shelf import MISSING

__all__ = ["MISSING", "Responses", "register"]
