"""Whether a request is answered by chance, so that asking twice may give two answers.

It is told by arguments such as `temperature`, wherever in a request a host may find them: among the request's own
fields, in dicts of generation arguments, and in every other dict that is not known to be something to read (`DATA`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ARGUMENTS = frozenset({"gen_kwargs", "generation_kwargs", "generation_config", "sampling_params", "extra_body"})
"""Fields of a request that hold generation arguments, and nothing else."""

MAY_HOLD_ARGUMENTS = ARGUMENTS | {
    *("options", "parameters", "params", "config", "kwargs", "model_kwargs", "generate_kwargs", "body", "sampling"),
    *("generationConfig", "inferenceConfig", "textGenerationConfig", "generation_args", "gen_args"),
}
"""What dicts of these names say of sampling is meant so; `options` may also be answers to choose from: their order
counts."""

DATA = frozenset(
    {
        *("messages", "content", "contents", "parts", "doc", "docs", "document", "documents"),
        *("tools", "functions", "toolConfig", "tool_config", "schema", "json_schema", "response_format"),
        *("response_schema", "responseSchema"),
    }
)
"""Fields that hold what a model is to read, or how tools and answers look: a temperature in it is somebody's."""

_SEEDS = ("seed", "random_seed")
_DRAWS = ("do_sample", "doSample")
_SEVERAL = ("n", "num_return_sequences", "best_of", "candidate_count", "candidateCount")
"""How many answers: more than one are drawn, unless decoding is greedy or by beams."""
_BEAMS = ("num_beams", "use_beam_search")
NAMES = frozenset({"temperature", *_SEEDS, *_DRAWS, *_SEVERAL, *_BEAMS})
"""The arguments that this is told by."""

_BESIDE_N = frozenset(
    {
        *("model", "messages", "prompt", "prompts", "input", "inputs", "contents", "system", "stop", "temperature"),
        *("max_tokens", "max_new_tokens", "max_completion_tokens", "do_sample", "top_p", "top_k"),
    }
)
"""Beside one of these `n` is how many answers; elsewhere it may count anything."""

_ROWS = frozenset({"row", "record", "example", "item", "sample", "datum", "entry", "instance", "reading", "data"})
HOTTEST = 5
"""No model is asked for more."""

_CHAT = ("messages", "contents")
_AROUND = ("input", "body", "request")
"""What may be around them, in batches; `input` of OpenAI's responses is one."""


def is_chat(request: Any) -> bool:
    """Whether a request is a chat, as OpenAI, Anthropic, Google and the servers after their model take it.

    All of them sample where a chat says nothing of it.
    """
    if type(request) is list:
        return bool(request) and type(request[0]) is dict and "role" in request[0]
    if type(request) is not dict:
        return False
    return any(name in request for name in _CHAT) or any(
        is_chat(inner) for name in _AROUND if (inner := request.get(name)) is not request
    )


def is_sampled(arguments: Mapping[str, Any], by_default: bool = False) -> bool:
    """Whether the arguments ask for sampling.

    Args:
        arguments: Of the request, and of its generation arguments.
        by_default: Whether the host samples when nothing is said.
    """
    if not arguments:
        return by_default
    greedy = False
    for name in _DRAWS:
        value = arguments.get(name)
        if value is not None:
            if _is_true(value):
                return True
            greedy = True
    temperature = arguments.get("temperature")
    if temperature is not None:
        return not isinstance(temperature, (int, float)) or temperature != 0
    if greedy:
        return False
    if any(_is_several(arguments.get(name)) for name in _SEVERAL):
        return not any(_is_several(arguments.get(name)) or arguments.get(name) is True for name in _BEAMS)
    return by_default


def fields_sampling(arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments that ask for sampling."""
    names = sorted(name for name, value in arguments.items() if is_sampled({name: value}))
    return [name for name in names if name not in _DRAWS] or names  # `do_sample` may be noted for another one


def is_row(name: str, value: Any) -> bool:
    """Whether an argument of a function is a row of data whose temperature no model could be asked for: a city's.

    Args:
        name: The argument's.
        value: As it was given.
    """
    if name not in _ROWS or type(value) is not dict or not _BESIDE_N.isdisjoint(value.keys() - {"temperature"}):
        return False
    if any(isinstance(each, dict | list | tuple) for each in value.values()) or not NAMES.isdisjoint(
        value.keys() - {"temperature"}
    ):
        return False
    temperature: Any = value.get("temperature")
    return type(temperature) in (int, float) and not 0 <= temperature <= HOTTEST


def _is_true(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:  # an array, say: nobody knows what a host makes of it
        return True


def _is_several(value: Any) -> bool:
    try:
        return bool(value is not None and value > 1)
    except Exception:  # no number
        return False


def seed_of(arguments: Mapping[str, Any]) -> Any:
    """Return the seed that is asked for, or None."""
    for name in _SEEDS:
        seed = arguments.get(name)
        if seed is not None and not _is_true(seed == -1):  # -1: llama.cpp and others choose one
            return seed
    return None


def telling(names: Iterable[Any], are_arguments: bool = False) -> list[str]:
    """Return those among the names of a dict that say something of sampling there.

    Args:
        names: All of them.
        are_arguments: Whether they are known to be generation arguments.
    """
    names = list(names)
    counts = are_arguments or not _BESIDE_N.isdisjoint(names)
    return [name for name in names if name in NAMES and (counts or name != "n")]


def note(arguments: dict[str, Any], said: Mapping[str, Any]) -> None:
    """Add what is said in one more place; of two that say something else, the one counts that asks for sampling."""
    for name, value in said.items():
        if name not in arguments or is_sampled({name: value}) or (name in _SEEDS and seed_of({name: value}) is None):
            arguments[name] = value


def note_elsewhere(arguments: dict[str, Any], request: Any) -> None:
    """Add what is said in other dicts of a request than in its own generation arguments.

    A seed counts there only beside what asks for sampling: elsewhere it may be any program's.

    Args:
        arguments: What the request's own arguments say.
        request: The request, which does not hold itself.
    """
    known = seed_of(arguments) is not None
    lacking = is_sampled(arguments) and not known
    held: list[tuple[dict[str, Any], bool]] = []
    _collect(request, None, type(request) is dict, held)
    for said, is_meant in held:
        if is_sampled(said):
            lacking = lacking or not (known or seed_of(said) is not None)
            note(arguments, said)
            if not is_meant:
                arguments["do_sample"] = True
        elif is_meant:
            note(arguments, said)
    if lacking:
        for name in _SEEDS:
            arguments.pop(name, None)


def _collect(value: Any, called: Any, noted: bool, held: list[tuple[dict[str, Any], bool]]) -> None:
    """Add what each dict in a value says, and whether its name says that it is meant so.

    Args:
        value: A list, tuple or dict.
        called: The name of the field that holds it.
        noted: Whether it was read already: what the request's own generation arguments say.
        held: Takes them.
    """
    if type(value) is dict:
        if not noted:
            is_meant = type(called) is str and called in MAY_HOLD_ARGUMENTS
            # A dict under such a name describes an argument: that is a schema.
            said = {name: value[name] for name in telling(value, is_meant) if type(value[name]) is not dict}
            if said:
                held.append((said, is_meant))
        for name, each in value.items():
            kind = type(each)
            if (kind is dict or kind is list or kind is tuple) and name not in DATA:
                _collect(each, name, noted and kind is dict and name in ARGUMENTS, held)
    elif type(value) is list or type(value) is tuple:
        for each in value:
            _collect(each, called, False, held)
