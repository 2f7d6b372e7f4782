"""LangChain's cache over a stash: `set_llm_cache(StashCache(stash))`.

LangChain names a question by two texts, the prompt and its own description of the model. What these do not say is not
told apart: give models that differ in more (another server behind the same name, other weights) caches with a `scope=`
of their own. LangChain looks up sampled requests, too: who sets a cache asks that the second answer be the first one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from langchain_core.caches import BaseCache
from langchain_core.messages import message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from lmstash.adapters.openai.references import points_at_uploads
from lmstash.caches.responses.requests.asking import namespace_of
from lmstash.caches.responses.requests.hiding import settings_show_secret
from lmstash.caches.responses.requests.urls import points_at_urls
from lmstash.errors import InvalidArgumentError
from lmstash.identity.content.media import text_media

if TYPE_CHECKING:
    from lmstash.stash import Stash

_KNOWN = (Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk)
_CLASSES: dict[str, Any] = {each.__name__: each for each in _KNOWN}


class StashCache(BaseCache):
    """A cache for LangChain's language models. Threads, tasks and processes may share it.

    Answers are kept as plain values and made anew of LangChain's own four classes: nothing is unpickled, and no class
    is loaded by name. Of a model's description in which a secret shows, a digest is kept. Empty answers, those that a
    content filter ended, and those that would come back altered (a message of a class of one's own, or with a parsed
    object in it) are not kept; nor are those to prompts that point at something by URL or by the id of an upload, since
    what is there may change.
    """

    def __init__(
        self, stash: Stash, *, scope: str = "langchain", ttl_seconds: float | None = None, trust_urls: bool = False
    ) -> None:
        """Read and write nothing yet.

        Args:
            stash: The stash; it stays the caller's to close.
            scope: Tells apart what LangChain's description of a model does not.
            ttl_seconds: How long new answers are served; default: the stash's.
            trust_urls: What URLs and ids in prompts point at never changes.
        """
        options: dict[str, Any] = {} if ttl_seconds is None else {"ttl_seconds": ttl_seconds}
        self._responses = stash.responses(f"langchain/{scope}", keep_if=_is_good, **options)
        self._trust_urls = trust_urls

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return what is kept, or None."""
        if not self._may_keep(prompt):
            return None
        kept = self._responses.get(_request(prompt, llm_string))
        try:
            return None if kept is None else [_made(each) for each in kept]
        except (KeyError, TypeError, ValueError):  # another version of LangChain kept it
            return None

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep an answer."""
        if not self._may_keep(prompt) or any(type(each) not in _KNOWN for each in return_val):
            return
        try:
            plain = [_plain(each) for each in return_val]
        except Exception as error:  # a message of a class of one's own, say: no chain ends for it
            events = self._responses.store.events
            events.warn_once("langchain answer", "lmstash: an answer of LangChain is not kept: %s", error)
            return
        self._responses.put(_request(prompt, llm_string), plain)

    def clear(self, **kwargs: Any) -> None:
        """Remove every answer of this scope. Takes no arguments of LangChain's."""
        model = self._responses.asker.look()
        if model is not None:
            self._responses.store.prune(None, namespace=namespace_of(model))

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """As `lookup`, which takes microseconds."""
        return self.lookup(prompt, llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """As `update`."""
        self.update(prompt, llm_string, return_val)

    async def aclear(self, **kwargs: Any) -> None:
        """As `clear`."""
        self.clear(**kwargs)

    def _may_keep(self, prompt: str) -> bool:
        if self._trust_urls or not prompt.startswith("["):
            return True
        try:
            messages = json.loads(prompt)  # a chat: messages as LangChain writes them
        except (ValueError, RecursionError):
            return True
        return not (points_at_urls(messages) or points_at_uploads(messages))


def _request(prompt: str, llm_string: str) -> dict[str, Any]:
    return {"prompt": prompt, "llm": text_media(llm_string) if _shows_secret(llm_string) else llm_string}


_shows_secret = lru_cache(maxsize=64)(settings_show_secret)


def _plain(generation: Generation) -> dict[str, Any]:
    plain: dict[str, Any] = {"class": type(generation).__name__, "text": str(generation.text)}
    plain["info"] = generation.generation_info
    if isinstance(generation, ChatGeneration):
        plain["message"] = message_to_dict(generation.message)
    if _made(plain) != generation:  # which tells classes of messages apart, too
        raise InvalidArgumentError("it would come back as another one: a parsed object in it, say, as a dict")
    return plain


def _made(plain: dict[str, Any]) -> Generation:
    made = _CLASSES[plain["class"]]
    if issubclass(made, ChatGeneration):
        return made(message=messages_from_dict([plain["message"]])[0], generation_info=plain["info"])
    return made(text=plain["text"], generation_info=plain["info"])


def _is_good(answer: Any) -> bool:
    """Whether all of an answer is there."""
    return bool(answer) and all(_is_whole(each) for each in answer)


def _is_whole(plain: dict[str, Any]) -> bool:
    data = plain.get("message", {}).get("data", {})
    about = {**(data.get("response_metadata") or {}), **(plain["info"] or {})}
    said = plain["text"] or data.get("content") or data.get("tool_calls")
    return bool(said) and about.get("finish_reason") not in ("content_filter", "error")
