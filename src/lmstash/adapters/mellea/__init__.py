"""mellea's model-state cache by its own names, and its local generation over an lmstash store.

from lmstash.adapters.mellea import ByteLRUCache, SimpleLRUCache, attach

backend = LocalHFBackend(model_id, cache=ByteLRUCache("2GB"))
attachment = attach(backend, lmstash.open("runs/notes"))     # prompts that begin alike are forwarded once
attachment.detach()
"""

from __future__ import annotations

from lmstash.adapters.mellea.attach import Attachment, attach
from lmstash.adapters.mellea.byte_cache import ByteLRUCache
from lmstash.adapters.mellea.cache import Cache, SimpleLRUCache

__all__ = ["Attachment", "ByteLRUCache", "Cache", "SimpleLRUCache", "attach"]
