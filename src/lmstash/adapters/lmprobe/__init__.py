"""lmprobe's cache, by its own names, over an lmstash store.

    from lmstash.adapters.lmprobe import CachedExtractor, import_cache, set_cache_backend

    set_cache_backend("runs/probe")                            # a folder, a Stash, a CacheBackend of your own
    import_cache("~/.cache/lmprobe", model=extractor, verify_sample=5)
    activations, mask = CachedExtractor(extractor).extract(prompts)

What differs from lmprobe: entries are named by who computed what, so other weights under one name are never served;
the limit holds while writing; equal prompts are computed once; padding never leaks into a value; nothing of anybody
else's is ever deleted.
"""

from lmstash.adapters.lmprobe.backends import CacheBackend
from lmstash.adapters.lmprobe.config import (
    enable_cache_logging,
    set_cache_backend,
    set_cache_dtype,
    set_cache_limit,
)
from lmstash.adapters.lmprobe.extractor import CachedExtractor, RemoteExtractionError
from lmstash.adapters.lmprobe.importer import (
    ImportedModel,
    ImportReport,
    declare_model,
    import_cache,
    load_imported,
)
from lmstash.adapters.lmprobe.info import CachedPromptInfo, CacheInfo, ModelCacheInfo
from lmstash.adapters.lmprobe.inspection import (
    cache_info,
    clear_cache,
    discover_cached,
    evict,
    get_prompt_cache_dir,
    invalidate_extraction_cache,
)

__all__ = [
    "CacheBackend",
    "CacheInfo",
    "CachedExtractor",
    "CachedPromptInfo",
    "ImportReport",
    "ImportedModel",
    "ModelCacheInfo",
    "RemoteExtractionError",
    "cache_info",
    "clear_cache",
    "declare_model",
    "discover_cached",
    "enable_cache_logging",
    "evict",
    "get_prompt_cache_dir",
    "import_cache",
    "invalidate_extraction_cache",
    "load_imported",
    "set_cache_backend",
    "set_cache_dtype",
    "set_cache_limit",
]
