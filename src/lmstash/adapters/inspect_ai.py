"""inspect-ai: answers of one of its models kept in a stash, whatever evaluation asks.

    model = attach(get_model("openai/gpt-5", config=GenerateConfig(temperature=0)), stash)
    eval(task, model=model)

inspect-ai has a cache of its own (`cache=True`): a pickle for each answer, without a limit. Its key holds neither the
arguments that a model was made with (`-M model_path=...`) nor, for a local model, the weights. Here a local model is
its weights and code (`lmstash.fingerprint`), any other its name and server; arguments and the provider's code count.
"""

from __future__ import annotations

import sys
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inspect_ai.model import GenerateConfig, Model, ModelOutput

from lmstash.caches.responses import Responses, register
from lmstash.errors import InvalidArgumentError, LmstashError, UnsupportedModelError
from lmstash.events import MissReason
from lmstash.identity.code import CodeGraph
from lmstash.identity.tokenizer import fingerprint_tokenizer

if TYPE_CHECKING:
    from lmstash.stash import Stash

_TRANSPORT = {
    *("max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections"),
    *("cache", "cache_prompt", "batch", "fail_on_refusal"),
}
"""Settings that change no answer, as inspect-ai's own cache has them."""
_OF_LOADING = {"device", "device_map", "batch_size", "model_path", "tokenizer_path", "tokenizer"}
"""Arguments of local models that say where they come from and run; model and tokenizer are read themselves."""
_MEDIA = {"image", "audio", "video", "document"}


def attach(
    model: Model,
    stash: Stash,
    *,
    keep_sampled: bool = False,
    revision: str | None = None,
    ttl_seconds: float | None = None,
) -> Model:
    """Have `model` compute each answer once; returns the same object.

    Takes the place of `model.api.generate`; `detach` puts it back. Answers that are served have no `usage`, so that
    they count for no limit of tokens. Refusals, empty answers and errors are not kept. Faults are misses: the model is
    called as before, and so is one that runs on another loop than asyncio's. Costs about a millisecond a call, and for
    a local model a look at its weights (`ModelWatch.refresh`).

    Args:
        model: As `get_model` returns it.
        stash: The stash; it stays the caller's to close.
        keep_sampled: Keep sampled answers that have no seed, too: the answer to the n-th asking of the same thing
            (epochs ask so) is served to the n-th asking of a later run.
        revision: What you declare of a model that computes elsewhere: a version, a date.
        ttl_seconds: How long new answers are served; default: the stash's.

    Raises:
        InvalidArgumentError: It has been attached already.
        UnsupportedModelError: A local model that cannot be identified safely.
    """
    api = model.api
    if hasattr(api.generate, "lmstash_generate"):
        raise InvalidArgumentError(f"{model} keeps its answers already. detach() it first.")
    register(ModelOutput, to_plain=_plain, from_plain=ModelOutput.model_validate)
    local = _local_model(api)
    options: dict[str, Any] = {} if ttl_seconds is None else {"ttl_seconds": ttl_seconds}
    if local is None:
        server = api.base_url or getattr(getattr(api, "client", None), "base_url", None)  # a variable may say it
        options |= {"base_url": None if server is None else str(server), "revision": revision}
    responses = stash.responses(
        str(model) if local is None else local,
        sampled_by_default=True,
        keep_sampled=keep_sampled,
        keep_if=_is_good,
        **options,
    )
    setattr(api, "generate", _Generate(api.generate, responses, _About(model, local)))  # noqa: B010 (a method's place)
    return model


def detach(model: Model) -> None:
    """Let `model` answer by itself again; nothing happens to one that was not attached."""
    generate = vars(model.api).get("generate")
    if isinstance(generate, _Generate):
        del model.api.generate


class _NoAnswerError(Exception):
    """A provider returned an error."""


class _Generate:
    """Stands in the place of `ModelAPI.generate`."""

    lmstash_generate = True

    def __init__(self, generate: Callable[..., Awaitable[Any]], responses: Responses, about: _About) -> None:
        self._generate = generate
        self._responses = responses
        self._about = about

    async def __call__(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> Any:
        async def generate() -> Any:
            return await self._generate(input=input, tools=tools, tool_choice=tool_choice, config=config)

        # Another loop than asyncio's cannot wait for whoever computes the same.
        request = None if _get_running_loop() is None else self._request(input, tools, tool_choice, config)
        if request is None:
            return await generate()
        result: Any = None

        async def compute() -> ModelOutput:
            nonlocal result
            result = await generate()
            output = result[0] if isinstance(result, tuple) else result
            if not isinstance(output, ModelOutput):  # an error, beside the call that it ended
                raise _NoAnswerError
            return output

        try:
            answer = await self._responses.get_or_compute_async(request, compute)
        except _NoAnswerError:
            return result
        return answer.model_copy(update={"usage": None}) if result is None else result

    def _request(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> dict[str, Any] | None:
        """Return what is asked as a request; None, counted and logged once, where that cannot be told."""
        events = self._responses.store.events
        try:
            given = config.model_dump(mode="json", exclude_none=True, exclude=_TRANSPORT)
            return {
                **self._about.components(),
                "messages": [_message(each) for each in input],
                "tools": [each.model_dump(mode="json", exclude_none=True) for each in tools],
                "tool_choice": tool_choice if isinstance(tool_choice, str) else asdict(tool_choice),
                "generation_config": given,
            }
        except Exception as error:  # other people's objects: whatever they do, nothing is cached
            events.warn_once(f"inspect {type(error)}", "lmstash: a request of inspect-ai is not cached: %s", error)
            events.miss("responses", b"", MissReason.UNSUPPORTED)
            return None


class _About:
    """What a model is beside its name, or its weights."""

    def __init__(self, model: Model, local: Any) -> None:
        self._model = model
        self._local = local
        self._code = _code_of(model.api)
        self._tokenizer: tuple[Any, str] | None = None

    def components(self) -> dict[str, Any]:
        """Return it as fields of a request."""
        api = self._model.api
        if not self._code.unchanged():
            self._code = _code_of(api)
        arguments = dict(self._model.model_args)
        about: dict[str, Any] = {"provider": [self._code.components(), self._code.packages()]}
        if self._local is not None:
            arguments = {name: value for name, value in arguments.items() if name not in _OF_LOADING}
            about["tokenizer"] = self._tokenizer_digest(getattr(api, "tokenizer", None))
        if arguments:
            about["model_args"] = arguments
        return about

    def _tokenizer_digest(self, tokenizer: Any) -> str:
        known = self._tokenizer
        if known is None or known[0] is not tokenizer:
            if tokenizer is None:
                raise UnsupportedModelError("a local model without a tokenizer to be seen")
            known = self._tokenizer = tokenizer, fingerprint_tokenizer(tokenizer).hex
        return known[1]


def _code_of(api: Any) -> CodeGraph:
    """Read the code of a provider; a package's version stands for it."""
    code = CodeGraph(installed_by_version=True)
    code.add(type(api))
    return code


def _local_model(api: Any) -> Any:
    """Return the torch module that a provider runs; None for one that asks a server."""
    torch, module = sys.modules.get("torch"), getattr(api, "model", None)
    return module if torch is not None and isinstance(module, torch.nn.Module) else None


def _message(message: Any) -> dict[str, Any]:
    plain = message.model_dump(mode="json", exclude_none=True, exclude={"id"})
    content = plain.get("content")
    for part in content if isinstance(content, list) else ():
        part.pop("cache_breakpoint", None)
        kind = part.get("type")
        place = part.get(kind) if kind in _MEDIA else None
        if isinstance(place, str) and not place.startswith("data:"):  # inspect-ai has fetched what it can before
            raise LmstashError(f"what is at {place!r} may change")
    return plain


def _plain(output: ModelOutput) -> dict[str, Any]:
    return output.model_dump(mode="json")


def _is_good(output: Any) -> bool:
    """Whether a model has answered: what was refused is asked for again."""
    if not isinstance(output, ModelOutput) or output.error is not None or not output.choices:
        return False
    messages = [each.message for each in output.choices if each.stop_reason != "content_filter"]
    return len(messages) == len(output.choices) and all(each.content or each.tool_calls for each in messages)
