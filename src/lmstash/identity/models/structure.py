"""What a torch model is apart from its tensors' bytes: modules, plain attributes, configuration, hooks, numerics.

One walk gives the components of the fingerprint (`read`), another, cheap enough for every call, a stamp that changes
whenever the components could (`stamp`). Both leave out only what is named here and known to be harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any

from lmstash.errors import UnsupportedModelError
from lmstash.identity.code.asked_by_text import CodeByText
from lmstash.identity.code.memos import Memo
from lmstash.identity.code.words import words_within
from lmstash.identity.describe import IMMUTABLE, TENSOR_MARKS, Describer
from lmstash.identity.encoding import Component, encode
from lmstash.identity.instances import in_slots
from lmstash.identity.models.code import ModelCode
from lmstash.identity.models.compiled import is_compiled_module
from lmstash.identity.models.hooks import (
    around_forward,
    foreign_hooks,
    global_hooks,
    is_its_own,
    own_hooks,
    placed_on,
    words_of,
)
from lmstash.identity.models.members_asked_for import members_asked_for
from lmstash.identity.models.numerics import device_types, environment, numerics, refuse_modes
from lmstash.identity.models.patched import patched
from lmstash.identity.models.patched_library import patched_library
from lmstash.identity.models.reached import config_of
from lmstash.identity.models.registries import registered

if TYPE_CHECKING:
    import torch

TORCH_OWN = frozenset(
    {
        "training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook",
        "_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
        "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    }
)  # fmt: skip
"""What torch keeps in a module's `__dict__`; read in its own way here, or about gradients and files only."""

HARMLESS = frozenset(
    {
        "name_or_path",  # where it was loaded from
        "generation_config",  # about generate(), not about a forward pass
        "warnings_issued",
        "hf_device_map",  # devices are recorded
        "_is_hf_initialized",  # set by loading
        "_weight_conversions",  # how files were read
        "_output_capturing_hooks_installed",  # transformers' recording hooks, see `hooks`
        "_is_accelerate_prepared",  # so that it is not wrapped again
        "_require_grads_hooks",  # handles of hooks, see `hooks`
        "_require_grads_hook",
    }
)
"""Module attributes that do not change what a forward pass computes, unless code of yours asks for them."""

_NOTES = frozenset({"name_or_path", "generation_config", "warnings_issued", "hf_device_map"})
"""Those among them that code may look at without knowing how transformers works inside."""
_PLAIN = (str, list, tuple, dict)

_CHECKPOINTING = frozenset({"gradient_checkpointing", "_gradient_checkpointing_func"})
"""How gradients are computed: transformers' own classes look at these in training mode only."""
_SKIP = TORCH_OWN | HARMLESS
_SKIP_OWN = _SKIP | {"_previous_max_cache_length", "_compiled_call", "_last_compile_config"}
"""The same for transformers' own classes: what generate() leaves for its next call, and no forward of theirs reads."""
_ONE_OR_MORE = frozenset({"active_adapter", "_active_adapter"})
"""Attributes of peft's in which one name stands for a list of one."""
_SKIP_EVALUATING = _SKIP_OWN | _CHECKPOINTING
_NO_KERNELS = "_use_kernels"  # False after loading, absent before
TOO_DEEP = "something on the model nests too deep, or holds itself. Remove it."
_RANDOM_WORDS = ("drop", "jitter", "noise")


class Structure:
    """What `read` found. `tensors` are named as they lie in the model; shared ones appear under each name."""

    def __init__(self, *, vouched: bool = False) -> None:
        self.vouched = vouched
        self.in_passes = ""
        """The first thing in the model's passes that may make of a token what hangs on others than those before it."""
        self.compiled = False
        """Whether something of it runs as `torch.compile` made it."""
        self.components: dict[str, Component] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.code = ModelCode()
        self.memos: list[Memo[Any]] = []
        """Functions that the model leads to and that remember their results."""

    def meet(self, what: str) -> None:
        """Refuse what stands in the passes and cannot be compared; note it where somebody has named it.

        Raises:
            UnsupportedModelError: Nobody has.
        """
        if not self.vouched:
            raise UnsupportedModelError(
                f"{what}, which lmstash did not place and cannot compare. Remove it, or name what it does: "
                "variant='...' (a new name whenever it changes)."
            )
        self.in_passes = self.in_passes or what


def read(model: torch.nn.Module, *, variant: str | None, strict_numerics: bool) -> Structure:
    """Walk the model and return its components, but for the bytes of its tensors.

    Raises:
        UnsupportedModelError: It cannot be cached safely as it is; the message says what to do.
    """
    whole, asked = False, frozenset[str]()
    while True:
        out = _read(model, variant=variant, strict_numerics=strict_numerics, whole_configs=whole, asked=asked)
        found = whole or out.code.reads_all, asked | _asked(out.code)  # which is known once it has been followed
        if found == (whole, asked):
            return out
        whole, asked = found  # what counts now may lead to more code


def settings_component(settings: Mapping[str, object]) -> Component:
    """Return what `numerics` found as it is in a model's key."""
    return Describer(ModelCode(), lenient=False).value(settings, "numerics")


def _read(
    model: torch.nn.Module,
    *,
    variant: str | None,
    strict_numerics: bool,
    whole_configs: bool,
    asked: frozenset[str] = frozenset(),
) -> Structure:
    if variant is None:
        refuse_modes()
    out = Structure(vouched=variant is not None)
    describer = Describer(out.code, lenient=out.vouched, whole_configs=whole_configs, of_model=True)
    describer.tensors = out.tensors
    describer.own = frozenset(map(id, (*model.modules(), *model.parameters(), *model.buffers())))
    modules: dict[Component, Component] = {}
    config = config_of(model)
    if config is not None:
        out.components["config"] = describer.value(config, "config")
    describer.module(model, "")
    if any("parametrizations" in each._modules for each in model.modules()):
        out.code.watch(_parametrizations_kept)
        _refuse_kept_parametrizations()
    hooks = foreign_hooks(global_hooks())
    for what in words_of(hooks):
        out.meet(f"torch's global hooks hold {what}")
    out.components["global_hooks"] = [describer.value(each, "global hooks") for each in hooks]
    put = patched(model, out.code, lenient=variant is not None)
    out.components["registered"] = {**registered(model, out.code), **put, **patched_library(out.code)}
    for place in put if out.vouched else ():  # a hook of all modules by another name
        if str(place).startswith("torch.nn.modules.module.Module."):
            out.meet(f"{place} was replaced")
    outside: dict[Component, Component] = {}
    asked_for: dict[Component, Component] | None = None
    while asked_for is None or describer.modules or len(outside) < len(out.code.objects):
        while describer.modules:
            name, module = describer.modules.pop()
            modules[name or "<root>"] = _read_module(name, module, describer, out, asked)
        for place, value in list(out.code.objects.items()):  # reading one may lead to more code, and to more modules
            if place not in outside:
                with describer.ordered(True):
                    outside[place] = describer.value(value, f"code {place}")
        if asked_for is None and not describer.modules and len(outside) == len(out.code.objects):
            asked_for = members_asked_for(model, out.code)
    out.components["modules"] = modules
    out.components["globals"] = outside
    out.components["numerics"] = settings_component(numerics(device_types(out.tensors.values())))
    out.components["variant"] = variant
    if strict_numerics:
        out.components["environment"] = environment(out.tensors.values())
    own = [each for each in model.modules() if not type(each).__module__.startswith(("torch.", "transformers."))]
    for each in own:
        if describer.is_yours(type(each)):
            out.code.asked |= words_within([held for held in vars(each).values() if type(held) in _PLAIN])
    variables = out.code.environment(value for each in own for value in vars(each).values())
    if variables:
        out.components["environment variables"] = variables
    files = out.code.files(held for each in own for held in vars(each).items())
    if files:
        out.components["files"] = files
    if asked_for:
        out.components["class members"] = asked_for
    out.components["packages"] = out.code.packages()
    out.components["code"] = out.code.components()
    out.memos = [*describer.memos, *out.code.memos]
    return out


def _read_module(
    name: str, module: torch.nn.Module, describer: Describer, out: Structure, asked: frozenset[str]
) -> Component:
    where = name or "the model"
    if module.training:
        _refuse_randomness(where, module)
    hooks = foreign_hooks(own_hooks(module))
    for what in (*placed_on(module, vouched=out.vouched), *words_of(hooks)):
        out.meet(f"{where} has {what}")
    for what in () if out.vouched else around_forward(module):  # so that nobody is told to vouch for it, in vain
        out.in_passes = out.in_passes or f"{where} has {what}"
    out.compiled = out.compiled or is_compiled_module(module)
    found: dict[Component, Component] = {
        "<class>": describer.code(type(module)),
        "<training>": module.training,
        "<hooks>": [describer.value(each, f"{where}'s hooks") for each in hooks],
        "<children>": [
            [child, None if each is None else describer.module(each, f"{name}.{child}" if name else child)]
            for child, each in module._modules.items()
        ],
    }
    skipped, in_order = _skipped(module, asked), describer.is_yours(type(module))
    for attribute, value in _attributes(module).items():
        if attribute in _ONE_OR_MORE and isinstance(value, str) and type(module).__module__.startswith("peft.tuners."):
            value = [value]
        if _is_put_back(module, attribute, value) or describer.passes_over(value):
            continue
        if attribute not in skipped and (attribute != _NO_KERNELS or value is not False):
            with describer.ordered(in_order):
                found[attribute] = describer.value(value, f"{name}.{attribute}" if name else attribute)
    for kind in (module._parameters, module._buffers):
        for each, tensor in kind.items():
            path = f"{name}.{each}" if name else each
            found[f"<{each}>"] = None if tensor is None else describer.tensor(tensor, path)
    return found


def stamp(model: torch.nn.Module, code: ModelCode | None = None) -> tuple[list[object], list[torch.Tensor]]:
    """Return a list that differs from an earlier one if `read` could, and the model's live tensors, in order.

    The list holds classes, names and plain values; what is not plain is described anew. `code` is what `read` followed,
    and says what counts beside the model's own; without it, that is configurations as wholes. Costs about 2 ms for a
    model of 400 modules.

    Raises:
        UnsupportedModelError: Something on it nests too deep.
    """
    try:
        return _stamp(model, code)
    except RecursionError:
        raise UnsupportedModelError(TOO_DEEP) from None


def _stamp(model: torch.nn.Module, code: ModelCode | None) -> tuple[list[object], list[torch.Tensor]]:
    outside: Mapping[str, Any] = {} if code is None else code.objects
    whole_configs, asked = (True, frozenset()) if code is None else (code.reads_all, _asked(code))
    describer = Describer(CodeByText(), lenient=True, follow_code=False, whole_configs=whole_configs, of_model=True)
    flat: list[object] = [encode(describer.value(config_of(model), "config"))]
    live: list[torch.Tensor] = []
    pending = describer.modules
    seen = describer.seen_modules
    describer.module(model, "")
    with describer.ordered(True):
        flat += [encode(describer.value(value, place)) for place, value in outside.items()]
    flat += [encode(describer.value(each, "hook")) for each in foreign_hooks(global_hooks())]
    while pending:
        name, module = pending.pop()
        state = module.__dict__
        if "_parameters" not in state:
            raise UnsupportedModelError(
                f"{name or 'the model'} is a {type(module).__qualname__}, whose code lmstash cannot read (scripted or "
                "traced?). Use the module as it was before."
            )
        place = f"{len(flat)}."  # so that names that all modules have need no marks
        flat += (type(module), module.training, name)
        skipped = _skipped(module, asked)
        with describer.ordered(describer.is_yours(type(module))):
            for attribute, value in _attributes(module).items():
                if attribute in skipped or _is_put_back(module, attribute, value):
                    continue
                kind = type(value)
                if kind in IMMUTABLE:
                    flat += (attribute, kind, value.hex() if kind is float else value)  # 0.0 == -0.0
                elif not describer.passes_over(value):
                    flat += (attribute, encode(describer.value(value, place + attribute)))
        for hooks in (state["_forward_hooks"], state["_forward_pre_hooks"]):
            if hooks:
                flat += [encode(describer.value(each, "hook")) for each in foreign_hooks([hooks])]
        for tensors in (state["_parameters"], state["_buffers"]):
            for each, tensor in tensors.items():
                flat.append(each)
                if tensor is not None:
                    live.append(tensor)
                    if not TENSOR_MARKS.issuperset(tensor.__dict__):
                        flat.append(encode(describer.tensor(tensor, each)))
        for child, inner in state["_modules"].items():
            flat += (child, id(inner))
            if inner is not None and id(inner) not in seen:
                seen[id(inner)] = child
                pending.append((child, inner))
    live += describer.tensors.values()
    flat.append(repr(numerics(device_types(live))))
    return flat, live


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    held = in_slots(module, type(module))
    return {**module.__dict__, **held} if held else module.__dict__


def _is_put_back(module: torch.nn.Module, attribute: str, value: Any) -> bool:
    """Whether this is a method that is found without it, too: the class's own, or what peft's generate() leaves."""
    if type(value) is not MethodType:
        return False
    return is_its_own(module, attribute, value) or (
        type(module).__module__.startswith("peft.tuners.")
        and not hasattr(type(module), attribute)
        and value == getattr(module._modules.get("model"), attribute, None)
    )


def _asked(code: ModelCode) -> frozenset[str]:
    """Return which attributes count that would not if there were no code of yours."""
    return HARMLESS & code.asked | (_NOTES if code.asks_for_any else frozenset())


def _skipped(module: torch.nn.Module, asked: frozenset[str]) -> frozenset[str]:
    """Return which attributes of a module do not count."""
    if not type(module).__module__.startswith("transformers."):
        found = _SKIP
    else:
        found = _SKIP_OWN if module.training else _SKIP_EVALUATING
    return found - asked if asked else found


def _parametrizations_kept() -> int:
    from torch.nn.utils import parametrize

    return parametrize._cache_enabled


def _refuse_kept_parametrizations() -> None:
    # What is kept may be of before an edit; and a pass of ours would leave what has no gradients to others' passes.
    if _parametrizations_kept():
        raise UnsupportedModelError(
            "torch.nn.utils.parametrize.cached() is on, under which a parametrized model computes with weights as they "
            "were when they were first used. Ask for cached values outside of it."
        )


def _refuse_randomness(where: str, module: torch.nn.Module) -> None:
    import torch

    if isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.track_running_stats:
        reason = "normalises by the batch"
    else:
        is_dropout = isinstance(module, torch.nn.modules.dropout._DropoutNd)
        rates = [
            attribute
            for attribute, value in module.__dict__.items()
            if isinstance(value, float)
            and value > 0
            and (any(word in attribute.lower() for word in _RANDOM_WORDS) or (is_dropout and attribute == "p"))
        ]
        if not rates:
            return
        reason = f"draws random numbers ({rates[0]}={module.__dict__[rates[0]]})"
    raise UnsupportedModelError(f"{where} is in training mode and {reason}. Call model.eval() before caching.")


def named(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the dense tensors behind the model's tensors, shared ones once, each under its first name."""
    from lmstash.identity.memory.weights import dense_parts

    for name, tensor in tensors.items():
        yield from dense_parts(name, tensor)
