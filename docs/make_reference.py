"""Writes the reference from the docstrings of the public names: `python docs/make_reference.py > docs/reference.md`.

A test compares the file with what this prints. Sources are read as text, so that nothing is imported.
"""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "lmstash"
LMPROBE = [
    *("set_cache_backend", "set_cache_limit", "set_cache_dtype", "enable_cache_logging", "cache_info"),
    *("discover_cached", "get_prompt_cache_dir", "evict", "clear_cache", "invalidate_extraction_cache"),
    *("import_cache", "declare_model", "load_imported", "ImportReport", "ImportedModel"),
    *("CachedExtractor", "RemoteExtractionError", "CacheBackend", "CacheInfo", "ModelCacheInfo", "CachedPromptInfo"),
]
PAGES: list[tuple[str, str, list[str]]] = [
    ("lmstash", "__init__.py", ["open", "fingerprint"]),
    ("lmstash.Stash", "stash.py", ["Stash"]),
    ("lmstash.Stash.tensors", "caches/tensors.py", ["Tensors"]),
    ("lmstash.caches.activations", "caches/activations/cache.py", ["Activations"]),
    ("lmstash.caches.activations", "caches/activations/extractor.py", ["Extractor", "ExtractionError"]),
    ("lmstash.caches.kv", "caches/kv/cache.py", ["KV"]),
    ("lmstash.caches.kv.stats", "caches/kv/stats.py", ["KVStats"]),
    ("lmstash.caches.logprobs", "caches/logprobs/cache.py", ["Logprobs"]),
    ("lmstash.caches.logprobs", "caches/logprobs/contexts.py", ["Context"]),
    ("lmstash.caches.responses", "caches/responses/cache.py", ["Responses"]),
    ("lmstash.caches.responses", "caches/responses/answers/records.py", ["register"]),
    ("lmstash.prefix.tree", "prefix/tree.py", ["PrefixTree"]),
    ("lmstash.identity.fingerprint", "identity/fingerprint.py", ["Fingerprint"]),
    ("lmstash.identity.keys", "identity/keys.py", ["Key"]),
    ("lmstash.store.base", "store/base.py", ["Store", "Write", "Entry", "EntryInfo", "StoreInfo", "VerifyReport"]),
    ("lmstash.store.disk.store", "store/disk/store.py", ["DiskStore"]),
    ("lmstash.store.memory", "store/memory.py", ["MemoryStore"]),
    ("lmstash.store.tiered", "store/tiered.py", ["TieredStore"]),
    ("lmstash.events", "events.py", ["Stats", "EventLog", "MissReason", "DropReason"]),
    ("lmstash.adapters.lmprobe", "adapters/lmprobe/extractor.py", LMPROBE),
    ("lmstash.adapters.lmprobe", "adapters/lmprobe/config.py", LMPROBE),
    ("lmstash.adapters.lmprobe", "adapters/lmprobe/inspection.py", LMPROBE),
    ("lmstash.adapters.lmprobe", "adapters/lmprobe/info.py", LMPROBE),
    ("lmstash.adapters.lmprobe", "adapters/lmprobe/importer.py", LMPROBE),
    ("lmstash.adapters.lmprobe", "adapters/lmprobe/backends.py", LMPROBE),
    ("lmstash.adapters.genlm", "adapters/genlm/async_transformer.py", ["AsyncTransformer"]),
    ("lmstash.adapters.genlm", "adapters/genlm/output_cache.py", ["OutputCache"]),
    ("lmstash.adapters.genlm", "adapters/genlm/token_trie.py", ["TokenTrie"]),
    ("lmstash.adapters.genlm", "adapters/genlm/dynamic_trie.py", ["DynamicTokenTrie"]),
    ("lmstash.adapters.llama_cpp", "adapters/llama_cpp/attaching.py", ["attach", "Attachment"]),
    ("lmstash.adapters.llama_cpp", "adapters/llama_cpp/llama.py", ["Llama", "bind"]),
    ("lmstash.adapters.llama_cpp", "adapters/llama_cpp/base.py", ["BaseLlamaCache"]),
    (
        "lmstash.adapters.llama_cpp",
        "adapters/llama_cpp/caches.py",
        ["LlamaRAMCache", "LlamaDiskCache", "LlamaStashCache"],
    ),
    ("lmstash.adapters.llama_cpp", "adapters/llama_cpp/state.py", ["LlamaState"]),
    ("lmstash.adapters.llama_cpp", "adapters/llama_cpp/importing.py", ["import_disk_cache"]),
    ("lmstash.adapters.llama_cpp.importing", "adapters/llama_cpp/importing.py", ["ImportReport"]),
    ("lmstash.adapters.llama_cpp.server", "adapters/llama_cpp/server.py", ["create_app"]),
    ("lmstash.adapters.openai", "adapters/openai/clients.py", ["http_client", "async_http_client"]),
    ("lmstash.adapters.openai", "adapters/openai/transport.py", ["CachingTransport", "AsyncCachingTransport"]),
    ("lmstash.adapters.openai.library", "adapters/openai/library.py", ["Library"]),
    ("lmstash.adapters.langchain", "adapters/langchain.py", ["StashCache"]),
    ("lmstash.adapters.mellea", "adapters/mellea/attach.py", ["attach", "Attachment"]),
    ("lmstash.adapters.mellea", "adapters/mellea/byte_cache.py", ["ByteLRUCache"]),
    ("lmstash.adapters.mellea", "adapters/mellea/cache.py", ["Cache", "SimpleLRUCache"]),
]
HEAD = """# Reference

<!-- Written by `python docs/make_reference.py > docs/reference.md`; a test compares it with the code. -->

The public names, from their docstrings. The command line has [its own](cli.md), the file format [too](format.md).
"""


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return `name(arguments) -> result` as written, without self."""
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self").removeprefix("cls, ")
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{node.name}({arguments}){result}"


def quoted(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[str]:
    """Return a docstring as it is set in the code."""
    return ["```text", ast.get_docstring(node) or "", "```", ""]


def entry(node: ast.stmt, prefix: str, level: int) -> list[str]:
    """Return the lines for a function or a class with its documented public members."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [f"{'#' * level} `{prefix}{signature(node)}`", "", *quoted(node)]
    if not isinstance(node, ast.ClassDef):
        return []
    lines = [f"{'#' * level} class `{node.name}`", "", *quoted(node)]
    for number, member in enumerate(node.body):
        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(member):
            if not member.name.startswith("_") or member.name in ("__init__", "__call__"):
                lines += entry(member, f"{node.name}.", level + 1)
        elif isinstance(member, (ast.AnnAssign, ast.Assign)):
            target = member.target if isinstance(member, ast.AnnAssign) else member.targets[0]
            following = node.body[number + 1] if number + 1 < len(node.body) else None
            said = following.value if isinstance(following, ast.Expr) else None
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                words = f": {said.value}" if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
                lines.append(f"- `{ast.unparse(member)}`{words}")
    return [*lines, ""]


def main() -> str:
    """Return the whole page."""
    lines = [HEAD]
    section = ""
    for title, path, names in PAGES:
        tree = ast.parse((SOURCE / path).read_text())
        if title != section:
            section = title
            lines += [f"## {title}", ""]
        for node in tree.body:
            if getattr(node, "name", None) in names:
                lines += entry(node, "", 3)
    text = "\n".join(line.rstrip() for line in "\n".join(lines).splitlines())
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


if __name__ == "__main__":
    print(main(), end="")
