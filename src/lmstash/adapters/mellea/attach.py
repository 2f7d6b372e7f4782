"""`attach`: a `LocalHFBackend` whose prompts are forwarded only as far as they are new."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from lmstash.errors import InvalidArgumentError, LmstashError, UnsupportedModelError
from lmstash.stash import Stash

_FUNNEL = "_generate_with_adapter_lock"
"""Through this method of the backend goes all generation by the base model: chat and raw, streamed or not."""

_paused: contextvars.ContextVar[bool] = contextvars.ContextVar("lmstash_mellea_paused", default=False)


def attach(backend: Any, stash: Stash, **options: Any) -> Attachment:
    """Route the generation of a mellea `LocalHFBackend` through `stash.kv`.

    Afterwards prompts that begin with the same tokens (a document, a system prompt, the turns so far) are forwarded
    once, also across processes; answers are those of the model (see `docs/exactness.md`). Everything that mellea hands
    to `generate` is honoured; calls that kept KV cannot take part in are generated as before, for instance with
    `use_caches=False`, and counted in `attachment.kv.stats.passed_on`. Never routed: generation under an adapter, since
    what an aLoRA leaves in the KV depends on tokens that come later.

    Args:
        backend: a `LocalHFBackend` (mellea 0.8).
        stash: where KV is kept.
        **options: as `stash.kv` takes them.

    Returns:
        The attachment: `detach()` puts the backend back as it was, `with attachment.off():` leaves single calls alone.

    Raises:
        InvalidArgumentError: the backend is of another kind or version, or attached already.
        UnsupportedModelError: the model cannot be fingerprinted safely, or its KV not be kept; says why.
    """
    model = getattr(backend, "_model", None)
    if model is None or not callable(getattr(backend, _FUNNEL, None)):
        raise InvalidArgumentError(
            f"{type(backend).__name__} has no {_FUNNEL}(): attach() knows the LocalHFBackend of mellea 0.8"
        )
    if isinstance(getattr(vars(backend).get(_FUNNEL), "__self__", None), Attachment):
        raise InvalidArgumentError("a stash is attached to this backend already: call detach() on that attachment")
    kv = stash.kv(model, **options)
    if kv.reason:
        raise UnsupportedModelError(f"the KV of {type(model).__name__} cannot be kept: {kv.reason}")
    return Attachment(backend, kv)


class Attachment:
    """A stash attached to a backend; also a context manager that detaches.

    Attributes:
        backend: the backend.
        kv: the KV cache of its model, with `stats`.
    """

    def __init__(self, backend: Any, kv: Any) -> None:
        """Take the place of the backend's method. Use `attach`."""
        self.backend = backend
        self.kv = kv
        self._attached = True
        self._original: Callable[..., Any] = getattr(backend, _FUNNEL)
        self._shadowed = vars(backend).get(_FUNNEL)
        setattr(backend, _FUNNEL, self._generate)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Generate without the stash what is asked for within the block, by this task or thread.

        mellea runs its calls in a thread of its own; the block follows them there.
        """
        token = _paused.set(True)
        try:
            yield
        finally:
            _paused.reset(token)

    def detach(self) -> None:
        """Put the backend back as it was, once what was computed is written. May be called twice.

        Somebody who wrapped the backend's method after `attach` keeps it; it then calls the original.
        """
        if not self._attached:
            return
        self._attached = False
        if vars(self.backend).get(_FUNNEL) == self._generate:
            if self._shadowed is None:
                delattr(self.backend, _FUNNEL)
            else:
                setattr(self.backend, _FUNNEL, self._shadowed)
        self.kv.flush()

    def __enter__(self) -> Self:
        """Return the attachment; leaving the block detaches."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    def __repr__(self) -> str:
        """One line."""
        state = "attached" if self._attached else "detached"
        return f"<Attachment of {type(self.backend).__name__} to {self.kv!r}, {state}>"

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for the backend's funnel: same lock, same checks, another `generate`."""
        # mellea 0.8's own unused KV path brings a cache of its own, which belongs to that call.
        ours = self._attached and not _paused.get() and kwargs.get("past_key_values") is None
        if ours and generate == getattr(self.backend._model, "generate", None) and self.backend._model is self.kv.model:
            generate = self._routed
        return self._original(generate, *args, **kwargs)

    def _routed(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.kv.generate(*args, **kwargs)
        except LmstashError as error:
            store = self.kv.store
            if store.strict:
                raise
            store.events.warn_once(f"mellea {error}", "lmstash: mellea generates without kept KV: %s", error)
            return self.backend._model.generate(*args, **kwargs)
