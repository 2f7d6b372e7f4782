"""The fingerprint of a tokenizer: everything that decides which token ids a text becomes."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

from lmstash.errors import UnsupportedModelError
from lmstash.identity.code.asked_by_text import CodeByText
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import Component
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

_HARMLESS = frozenset(
    {
        "name_or_path", "vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file", "_commit_hash",
        "added_tokens_file", "chat_template_file", "tokenizer_class", "processor_class", "auto_map", "local_files_only",
        "init_kwargs", "init_inputs", "deprecation_warnings", "_tokenizer", "_in_target_context_manager", "verbose",
        "cache_dir", "token", "use_auth_token", "is_local", "_is_local", "backend", "files_loaded",
        "_should_update_post_processor",
        "added_tokens_decoder", "_added_tokens_decoder", "padding_side",
        "clean_up_tokenization_spaces",
    }
)  # fmt: skip
"""Where it came from, what it prints, how it decodes; init_kwargs are read on their own, without these."""


def fingerprint_tokenizer(tokenizer: Any) -> Fingerprint:
    """Return who `tokenizer` is now: vocabulary, rules, special tokens, chat template, settings and code.

    Truncation and padding, which a call sets as it likes, do not count. Costs some 150 ms for a vocabulary of 50,000.

    Raises:
        UnsupportedModelError: It is not a tokenizer that lmstash can take apart.
    """
    code = CodeByText()
    describer = Describer(code, lenient=False)
    components: dict[str, Component] = {"what": "tokenizer"}
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if type(backend).__module__.partition(".")[0] == "tokenizers" and hasattr(backend, "to_str"):
        rules = json.loads(backend.to_str())
        rules["truncation"] = rules["padding"] = None
        components["rules"] = {name: _digest(part) for name, part in rules.items()}
    elif callable(getattr(tokenizer, "get_vocab", None)) and hasattr(tokenizer, "init_kwargs"):
        components["vocabulary"] = _digest(sorted(tokenizer.get_vocab().items()))
        added = getattr(tokenizer, "added_tokens_decoder", {})
        components["added"] = _digest(sorted((index, repr(token)) for index, token in added.items()))
    else:
        raise UnsupportedModelError(
            f"cannot tell what a {type(tokenizer).__module__}.{type(tokenizer).__qualname__} makes of a text. "
            "Give a transformers tokenizer, or pass lists of token ids."
        )
    components["class"] = describer.code(type(tokenizer))
    if backend is not tokenizer:
        components["settings"] = _settings(tokenizer, describer)
    components["packages"] = {
        **code.packages(),
        "tokenizers": getattr(sys.modules.get("tokenizers"), "__version__", None),
    }
    components["globals"] = {place: describer.value(value, place) for place, value in code.objects.items()}
    components["code"] = code.components()
    name = getattr(tokenizer, "name_or_path", None)
    recorded: dict[str, Component] = {
        "name": name if isinstance(name, str) and name else type(tokenizer).__qualname__,
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
    }
    return Fingerprint(Key(components), recorded)


def _settings(tokenizer: Any, describer: Describer) -> Component:
    """Return init arguments and attributes; what holds the backend's vocabulary has been read already."""
    found: dict[Component, Component] = {}
    for source in (getattr(tokenizer, "init_kwargs", {}), vars(tokenizer)):
        for name, value in source.items():
            if name not in _HARMLESS:
                found[str(name)] = _plain(value) or describer.value(value, str(name))
    return found


def _plain(value: Any) -> Component:
    """Return special tokens by their text (their flags are among the backend's rules, or in the vocabulary)."""
    if type(value).__qualname__ == "AddedToken":
        return value.content
    if isinstance(value, list | tuple):
        return [type(value).__name__, *[_plain(each) or repr(each) for each in value]]
    if isinstance(value, dict):
        return {repr(key): each if type(each) is str else _plain(each) or repr(each) for key, each in value.items()}
    return None


def _digest(part: object) -> Component:
    return hashlib.sha256(json.dumps(part).encode()).hexdigest()
