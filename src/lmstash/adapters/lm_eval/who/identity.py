"""Which model answers an evaluation: what an `LM` of the harness is made of, as far as its answers depend on it.

* `HFLM` and its subclasses: the torch module by content (looked at again, since it may change in place), its generation
  defaults, the tokenizer, and every attribute of the `LM` that is not known to be harmless.
* `TemplateAPI` and its subclasses (OpenAI, Anthropic, local servers): provider, address (where none is given, what the
  environment says), model and every other argument that is not known to be harmless. What a server runs behind a name
  cannot be seen: declare a `revision=`.
* Everything else: what its owner declares. Nobody guesses.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from typing import Any

from lmstash.adapters.lm_eval.who.addresses import address_of, addresses_in_environment
from lmstash.adapters.lm_eval.who.code_of import class_of, described
from lmstash.adapters.lm_eval.who.declared import DeclaredModel
from lmstash.adapters.lm_eval.who.made_in_calls import made_in_calls
from lmstash.adapters.lm_eval.who.settings import (
    DERIVED,
    IN_WEIGHTS,
    RUNNING,
    header_of,
    how_sent,
    is_headers,
    settings_and_code,
)
from lmstash.caches.responses.requests.sampling import seed_of
from lmstash.caches.responses.who import Who, plain_url
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.encoding import Component
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.identity.live_tokenizers import LiveTokenizers
from lmstash.identity.models.watch import ModelWatch, watch_model

_GENERATION_NAMES = frozenset({"transformers_version", "_from_model_config"})


def who_answers(
    lm: Any,
    *,
    model: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    strict_numerics: bool = False,
    harmless: Collection[str] = (),
) -> Who:
    """Return who answers when `lm` is asked.

    Args:
        lm: The harness's model.
        model: What its owner declares it to be, instead of looking; what can be read off the `LM` counts, too.
        revision: What is declared of a model behind an API, or of a declared one.
        variant: The owner's name for a difference that lmstash cannot see.
        strict_numerics: For a torch module: torch's version and the device count, too.
        harmless: Names of attributes of the `LM` that change no answer, besides the known ones.

    Raises:
        InvalidArgumentError: An empty name is declared.
        UnsupportedModelError: It cannot be told what the answers depend on, and nothing is declared.
    """
    if model == "":
        raise InvalidArgumentError(
            "model= takes a name that you declare for the model, such as 'llama-3-8b at vllm 0.9'"
        )
    if model is not None:
        return DeclaredModel(lm, model, revision=revision, variant=variant, without=harmless)
    given: dict[str, Any] = {"revision": revision, "variant": variant, "harmless": harmless}
    if _is(lm, "lm_eval.models.huggingface", "HFLM"):
        return LocalModel(lm, **given, strict_numerics=strict_numerics)
    if _is(lm, "lm_eval.models.api_models", "TemplateAPI"):
        return RemoteModel(lm, **given)
    raise UnsupportedModelError(
        f"what a {type(lm).__module__}.{type(lm).__qualname__} answers depends on a model that lmstash cannot see. "
        "Declare which: model='name and version' (`lmstash eval --model-is NAME lm_eval ...`)."
    )


def _is(lm: Any, module: str, name: str) -> bool:
    found = getattr(sys.modules.get(module), name, None)
    return found is not None and isinstance(lm, found)


class LocalModel:
    """An `HFLM`: its module is watched, and the rest is read, each time someone looks. Threads may share it."""

    keeps_empty = True
    """An empty text is what this model generates there, not a server's failure."""

    def __init__(
        self,
        lm: Any,
        *,
        revision: str | None,
        variant: str | None,
        strict_numerics: bool,
        harmless: Collection[str] = (),
    ) -> None:
        self._lm = lm
        self.made = made_in_calls(lm)
        self._harmless = harmless
        self._declared: dict[str, Component] = {"revision": revision, "variant": variant}
        self._strict_numerics = strict_numerics
        self._watched: tuple[Any, ModelWatch] | None = None
        self._tokenizer = _Tokenizer()
        self._lock = threading.Lock()
        self._last: Fingerprint | None = None
        self.look()

    def look(self) -> Fingerprint:
        """Return who would answer now. Reads the weights (some 30 ms for half a gigabyte)."""
        watch = self._watch()
        return self._with(watch.refresh())

    def unchanged(self, since: Fingerprint) -> bool:
        """Read every weight and say whether it is still the same; another module in its place is another model."""
        try:
            before = self._watched
            watch = self._watch()
            return self._watched is before and watch.unchanged() and self._with(watch.fingerprint) == since
        except UnsupportedModelError:
            return False

    def _watch(self) -> ModelWatch:
        """Return the watch of the module that the `LM` has now."""
        module = self._lm.model
        with self._lock:
            if self._watched is None or self._watched[0] is not module:
                variant = self._declared["variant"]
                given: dict[str, Any] = {"variant": variant, "strict_numerics": self._strict_numerics}
                self._watched = module, watch_model(module, **given)
            return self._watched[1]

    def seed(self) -> int | None:
        """The seed that sampling goes out from."""
        torch = sys.modules.get("torch")
        return None if torch is None else int(torch.initial_seed())

    def _with(self, module: Fingerprint) -> Fingerprint:
        return self.made.told(lambda: self._told(module))

    def _told(self, module: Fingerprint) -> Fingerprint:
        lm = self._lm
        vouched, held = self._declared["variant"] is not None, self.made.before()
        code, about = class_of(lm, vouched=vouched, held=held)
        defaults = getattr(lm.model, "generation_config", None)
        without = {"tokenizer", *self._harmless}
        module_held = attributes_of(lm).get("_model")
        if module_held is lm.model or hasattr(module_held, "named_parameters"):
            without.add("_model")
        generation = {} if defaults is None else {k: v for k, v in defaults.to_dict().items() if v is not None}
        parts: dict[str, Component] = {
            "kind": "lm_eval local model",
            "module": module.digest,
            "tokenizer": self._tokenizer.digest(lm.tokenizer),
            "class": about,
            "max_length": _plain(lm.max_length),
            "generation": described(generation, _GENERATION_NAMES, code),
            **settings_and_code(lm, RUNNING | IN_WEIGHTS, code, without, held=held, vouched=vouched),
            **self._declared,
        }
        key = Key(parts)
        with self._lock:
            if self._last is None or self._last.digest != key.digest:
                name = lm.pretrained if isinstance(lm.pretrained, str) else module.recorded.get("name")
                self._last = Fingerprint(key, {"name": name, "harness": "lm_eval", **self._declared})
            return self._last


class RemoteModel:
    """A model behind an API, by what the harness was told of it. Threads may share it."""

    keeps_empty = False

    def __init__(self, lm: Any, *, revision: str | None, variant: str | None, harmless: Collection[str] = ()) -> None:
        self._lm = lm
        self.made = made_in_calls(lm)
        self._harmless = harmless
        self._declared: dict[str, Component] = {"revision": revision, "variant": variant}
        self._tokenizer = _Tokenizer()
        self.look()

    def look(self) -> Fingerprint:
        """Return who would answer now."""
        return self.made.told(self._told)

    def _told(self) -> Fingerprint:
        lm = self._lm
        vouched, held = self._declared["variant"] is not None, self.made.before()
        code, about = class_of(lm, vouched=vouched, held=held)
        url = None if lm.base_url is None else str(lm.base_url)
        header = header_of(lm)
        headers = (name for name in ("_header", "header") if is_headers(lm, name))
        without = {"base_url", "tokenizer", *headers, *self._harmless}
        parts: dict[str, Component] = {
            "kind": "lm_eval remote model",
            "class": about,
            "base_url": None if url is None else address_of(url),
            "header": header,
            "tokenizer": self._tokenizer.digest(lm.tokenizer),
            **settings_and_code(lm, RUNNING | DERIVED, code, without, held=held, vouched=vouched),
            **how_sent(lm),
            **({"environment": addresses_in_environment()} if url is None else {}),
            **self._declared,
        }
        name = str(lm.model or type(lm).__name__)
        where = None if url is None else plain_url(url)
        return Fingerprint(Key(parts), {"name": name, "base_url": where, "harness": "lm_eval", **self._declared})

    def unchanged(self, since: Fingerprint) -> bool:
        """Whether the harness's settings are still the same."""
        try:
            return self.look() == since
        except UnsupportedModelError:
            return False

    def seed(self) -> int | None:
        """The seed that is sent with each request (part of the identity, too), as far as it is known to be."""
        return _sent_seed(self._lm)


def _sent_seed(lm: Any) -> Any:
    """Return the seed in what the harness's own code sends; None where it sends none, or where other code decides.

    Every `TemplateAPI` has a seed, but not every one sends it, and LiteLLM drops it for some providers.
    """
    template = sys.modules["lm_eval.models.api_models"].TemplateAPI
    if any(_function_of(lm, name) is not getattr(template, name) for name in ("model_call", "amodel_call")):
        return None
    create = _function_of(lm, "_create_payload")
    if str(getattr(create, "__module__", "")).partition(".")[0] != "lm_eval":
        return None
    options = {"until": ["."], "max_gen_toks": 1, "do_sample": True, "temperature": 1.0}
    try:
        sent = create(lm, [{"role": "user", "content": "."}], generate=True, gen_kwargs=options, seed=lm._seed)
        return seed_of(sent)
    except Exception:  # then nobody knows
        return None


def _function_of(lm: Any, name: str) -> Any:
    """Return what a method of this object runs, also if it was replaced in the object alone."""
    found = getattr(lm, name, None)
    return getattr(found, "__func__", found)


class _Tokenizer:
    """What stands for the tokenizer of an `LM`."""

    def __init__(self) -> None:
        self._known = LiveTokenizers()

    def digest(self, tokenizer: Any) -> Component:
        if tokenizer is None or isinstance(tokenizer, str):
            return tokenizer
        if not hasattr(tokenizer, "backend_tokenizer") and not hasattr(tokenizer, "init_kwargs"):
            return _foreign_tokenizer(tokenizer)
        return self._known.told(tokenizer)


def _foreign_tokenizer(tokenizer: Any) -> Component:
    """Tokenizers of tiktoken, by name, and of a server, by its address (the model there is declared)."""
    kind = type(tokenizer)
    name = getattr(tokenizer, "name", None) if kind.__module__.startswith("tiktoken") else None
    address = getattr(tokenizer, "base_url", None)
    if not isinstance(name, str) and not isinstance(address, str):
        raise UnsupportedModelError(f"a tokenizer of {kind.__module__}.{kind.__qualname__} cannot be told from another")
    return [kind.__module__, kind.__qualname__, name, None if address is None else plain_url(str(address))]


def _plain(value: Any) -> Component:
    return int(value) if isinstance(value, int) else str(value)
