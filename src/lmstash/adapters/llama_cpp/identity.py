"""Who computes: the fingerprint of a llama.cpp context, from what it was made of and what was done to it.

Everything that was given to llama.cpp is part of the identity, except what is known not to change the K/V of a token
(`_HARMLESS`) and what changes their last bits only (`_NUMERIC`, which count with `strict_numerics`). What cannot be
known is a reason to refuse.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as _c

from lmstash.adapters.llama_cpp import watching
from lmstash.adapters.llama_cpp.watching import SeenContext, SeenFile, SeenModel
from lmstash.caches.digests import keep_digests, recall_digests
from lmstash.caches.states.cache import Memory
from lmstash.errors import UnsupportedModelError
from lmstash.identity.content.files import Stamp, file_digest, stamp_of, stop_reading
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import Store

_HARMLESS = frozenset(
    {
        # How much fits and how it is fed; RoPE depends on n_ctx only as `long_context` says.
        "n_ctx", "n_batch", "n_ubatch", "n_outputs_max", "n_outputs_max_per_seq",
        # Who works, what is measured, how a file is read, what happens to logits.
        "n_threads", "n_threads_batch", "no_perf", "load_mode", "check_tensors", "n_samplers", "defrag_thold",
    }
)  # fmt: skip
_NUMERIC = frozenset(
    {"n_gpu_layers", "split_mode", "main_gpu", "offload_kqv", "op_offload", "use_extra_bufts", "no_host", "lazy_mode"}
)
_HARMLESS_POINTERS = frozenset(
    {"progress_callback", "progress_callback_user_data", "kv_overrides", "tensor_split", "abort_callback",
     "abort_callback_data", "samplers"}
)  # fmt: skip
"""Overrides are in the identity by their values; a split among devices changes last bits only."""
_FLASH_AUTO = -1


class Identity:
    """Says who a `llama_cpp.Llama` is, as often as it is asked. Used by the thread that uses the object."""

    def __init__(self, llm: Any, *, strict_numerics: bool = False, variant: str | None = None) -> None:
        """Take the object; nothing is read yet."""
        self._llm = llm
        self._strict = strict_numerics
        self._variant = variant
        self.mode: str | None = None
        """What else is promised of values."""
        self._known: tuple[Any, Fingerprint] | None = None
        self._recalled: dict[Stamp, bytes] = {}
        """Digests of files that the store which is used now has kept."""
        self._recalled_from: weakref.ref[Store] | None = None

    @property
    def context(self) -> SeenContext:
        """What is known of the context.

        Raises:
            UnsupportedModelError: Nothing is, or it is closed.
        """
        handle = getattr(self._llm._ctx, "ctx", None)
        if not handle:
            raise UnsupportedModelError("the model is closed")
        seen = watching.contexts.get(watching.address(handle))
        if seen is None:
            raise UnsupportedModelError(
                "the model was loaded before lmstash could see how. Import lmstash.adapters.llama_cpp first, or load "
                "it by its Llama"
            )
        return seen

    def refresh(self) -> Fingerprint:
        """Return who computes now. Costs about 10 us; reading the files the first time.

        Raises:
            UnsupportedModelError: It cannot be known, or its states cannot be kept safely; says why.
        """
        try:
            return self._refresh()
        except UnsupportedModelError:
            raise
        except Exception as error:  # a cache that cannot tell who asks misses; it does not end a completion
            raise UnsupportedModelError(f"who computes cannot be told: {error!r}") from error

    def _refresh(self) -> Fingerprint:
        context = self.context
        model = watching.models.get(watching.address(self._llm._model.model))
        if model is None:
            raise UnsupportedModelError("the model was loaded in a way that is not known")
        files = self._files(model, context)
        for file in files:
            if file.stamp is None or stamp_of(file.path) != file.stamp:
                raise UnsupportedModelError(f"{file.path} was changed since it was loaded. Load the model again")
        state = (id(context), context.version, self.mode, len(context.oddities), tuple(file.stamp for file in files))
        if self._known is None or self._known[0] != state:
            self._known = state, self._describe(model, context)
        return self._known[1]

    def _files(self, model: SeenModel, context: SeenContext) -> list[SeenFile]:
        return [*model.files, *(self._adapter(handle) for handle, _ in context.adapters)]

    def recall(self, store: Store | None, salt: bytes | str | None = None) -> None:
        """Take what a store has kept of the digests of the model's files; from now on of no other one.

        Costs nothing where that was done for this store.
        """
        if store is (self._recalled_from() if self._recalled_from is not None else None):
            return
        self._recalled, self._known = {}, None
        self._recalled_from = None if store is None else weakref.ref(store)
        if store is not None:
            self._recalled = recall_digests(store, self._stamped(), salt)
            for stamp in self._recalled:
                stop_reading(stamp)

    def keep(self, store: Store, salt: bytes | str | None = None) -> None:
        """Have a store keep the digests that were read, for other processes."""
        keep_digests(store, [each for each in self._stamped() if each[1] not in self._recalled], salt)

    def _stamped(self) -> list[tuple[str, Stamp]]:
        """Return the files that were not changed since they were loaded."""
        try:
            context = self.context
            model = watching.models.get(watching.address(self._llm._model.model))
            files = self._files(model, context) if model is not None else []
        except UnsupportedModelError:
            return []
        return [(file.path, file.stamp) for file in files if file.stamp and stamp_of(file.path) == file.stamp]

    def memory(self) -> Memory:
        """Return what states are made of.

        Raises:
            UnsupportedModelError: Of something that cannot be kept.
        """
        model, params = self._llm._model.model, self.context.settings
        if params.get("n_seq_max", 1) != 1 and not params.get("kv_unified", False):
            raise UnsupportedModelError("its context is of several streams")
        windows, whole_windows = _c.llama_model_n_swa(model) > 0, bool(params.get("swa_full", True))
        if _c.llama_model_is_recurrent(model):
            return Memory(n_parts=0, has_rest=True)
        if _c.llama_model_is_hybrid(model):
            return Memory(n_parts=2 if windows and whole_windows else 1, has_rest=True)
        if windows:
            return Memory(n_parts=2) if whole_windows else Memory(n_parts=1, has_rest=True)
        return Memory()

    @staticmethod
    def _adapter(handle: int) -> SeenFile:
        seen = watching.adapters.get(handle)
        if seen is None:
            raise UnsupportedModelError("a LoRA adapter was loaded in a way that is not known")
        return seen

    def _describe(self, model: SeenModel, context: SeenContext) -> Fingerprint:
        handle = self._llm._model.model
        self._refuse(handle, model, context)
        hidden = _HARMLESS if self._strict else _HARMLESS | _NUMERIC
        components: dict[str, Any] = {
            "kind": "llama.cpp",
            "library": _library(),
            "files": tuple(self._digest(file) for file in model.files),
            "overrides": dict(sorted(model.overrides.items())),
            "model": {name: value for name, value in sorted(model.settings.items()) if name not in hidden},
            "context": {name: value for name, value in sorted(context.settings.items()) if name not in hidden},
            "long_context": self._long_context(handle),
            "rotation": context.rotation,
            "adapters": tuple((self._digest(self._adapter(each)), scale) for each, scale in context.adapters if scale),
            "control": context.control,
            "variant": self._variant,
            "mode": self.mode,
        }
        if self._strict:
            components["placement"] = sorted((model.pointers | context.pointers) & {"tensor_split"})
            components["system"] = _c.llama_print_system_info()
        name = self._meta("general.name") or os.path.basename(model.files[0].path)
        recorded = {"name": name, "class": "llama.cpp", "architecture": self._meta("general.architecture")}
        return Fingerprint(Key(components), recorded)

    def _digest(self, file: SeenFile) -> bytes:
        recalled = None if file.stamp is None else self._recalled.get(file.stamp)
        return _digest(file) if recalled is None else recalled

    def _refuse(self, handle: Any, model: SeenModel, context: SeenContext) -> None:
        if context.oddities:
            raise UnsupportedModelError(sorted(context.oddities)[0])
        if self.mode is not None and _c.llama_model_n_swa(handle) > 0 and self.memory().has_rest:
            # A restored window lies in another order than in a fresh run, and sums differ in their last bits.
            raise UnsupportedModelError("exact=True needs swa_full=True of a model with a sliding window")
        pointers = (model.pointers | context.pointers) - _HARMLESS_POINTERS
        if pointers:
            raise UnsupportedModelError(f"{min(pointers)} is set, and may change what is computed")
        if self._llm._logits_all and "samplers" in context.pointers:
            raise UnsupportedModelError("samplers in its context may change its scores")
        if context.settings.get("flash_attn_type") == _FLASH_AUTO:
            raise UnsupportedModelError("llama.cpp chose by itself whether to use flash attention. Say which")
        if _c.llama_model_has_encoder(handle) or _c.llama_model_is_diffusion(handle):
            raise UnsupportedModelError("its states are of more than the tokens before")
        causal = getattr(_c, "llama_get_causal_attn", None)
        if causal is not None and not causal(self._llm._ctx.ctx):
            raise UnsupportedModelError("its attention is not causal")
        if model.settings.get("vocab_only") or model.settings.get("no_alloc"):
            raise UnsupportedModelError("it has no weights")

    def _long_context(self, handle: Any) -> bool:
        """Whether the context is longer than the model was trained for: some models then use other RoPE factors."""
        seen = getattr(_c, "llama_n_ctx_seq", _c.llama_n_ctx)(self._llm._ctx.ctx)
        original = self._meta(f"{self._meta('general.architecture')}.rope.scaling.original_context_length")
        return seen > (int(original) if original.isdigit() else _c.llama_model_n_ctx_train(handle))

    def _meta(self, name: str) -> str:
        """Return one fact of the model's file; empty when it is not there."""
        text = ctypes.create_string_buffer(1024)
        buffer: Any = text
        length = _c.llama_model_meta_val_str(self._llm._model.model, name.encode(), buffer, len(text))
        return text.value.decode("utf-8", "replace") if length > 0 else ""


def _digest(file: SeenFile) -> bytes:
    if file.stamp is None:
        raise UnsupportedModelError(f"{file.path} was changed while it was loaded. Load the model again")
    return file_digest(file.path, file.stamp)


_known_library: tuple[Any, ...] | None = None


def _loaded_libraries() -> list[SeenFile]:
    folder = str(getattr(_c, "_base_path", os.path.join(os.path.dirname(llama_cpp.__file__), "lib")))
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    paths = {os.path.realpath(os.path.join(folder, name)) for name in names if "llama" in name or "ggml" in name}
    return [SeenFile(path, stamp_of(path)) for path in sorted(paths) if os.path.isfile(path)]


_LIBRARIES = _loaded_libraries()
"""As they are when llama.cpp is loaded: a package may be upgraded while a program runs."""


def library_files() -> list[str]:
    """Return the paths of llama.cpp's own libraries."""
    return [file.path for file in _LIBRARIES]


def _library() -> tuple[Any, ...]:
    """Return llama-cpp-python's version, and the digests of llama.cpp's own libraries; read once."""
    global _known_library
    if _known_library is None:
        if not _LIBRARIES:
            raise UnsupportedModelError("the libraries of llama.cpp were not found")
        _known_library = (llama_cpp.__version__, *sorted({_digest(file) for file in _LIBRARIES}))
    return _known_library
