"""Read activations off a transformers model with hooks, running no more of it than is needed."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lmstash.caches.activations.batching import ACCELERATOR_BATCH_TOKENS, BATCH_TOKENS
from lmstash.caches.activations.on_device import says_no_memory, to_device, to_host
from lmstash.caches.activations.padding import pad, rounding_of, shows_company, shows_padding
from lmstash.caches.activations.passes import passes_over
from lmstash.caches.activations.pooling import Pool, pack_tokens, pool_tokens
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.sites import (
    LAYERLESS_SITES,
    find_blocks,
    find_submodule,
    first_tensor,
    logits_of,
    router_layers,
)
from lmstash.caches.activations.source import Values
from lmstash.caches.pass_hooks import PassHooks
from lmstash.caches.torch_model import TorchModel, first_number
from lmstash.errors import UnsupportedModelError
from lmstash.events import logger
from lmstash.identity.models.hooks import foreign_hooks, global_hooks, has_own_forward, own_hooks


class _EverythingRead(Exception):
    pass


class ModelSource(TorchModel):
    """A transformers model as a `Source`.

    Prompts are padded on the right with an attention mask, whatever the tokenizer would do, unless that shows in its
    values: then only prompts of one length run together. Positions are 0..n-1. Only the base model runs (no vocabulary
    head), under `no_grad`, stops after the last module asked for, and is left as it was (see `Passes`). Threads may
    share it: each reads only what its own forward pass computes.
    """

    remote = False
    max_retries = 0
    retry_seconds = 0.0

    def __init__(self, model: Any, *, unknown_code: bool = False) -> None:
        """Find the blocks of `model`; takes what `TorchModel` takes.

        Raises:
            UnsupportedModelError: An encoder-decoder, a model on the meta device, or one whose blocks cannot be found.
        """
        super().__init__(model, unknown_code=unknown_code)
        self._entry = self.base if self.may_skip_head() else model
        self.blocks = self._find_blocks()
        self.n_experts = first_number(self.config, "num_experts", "num_local_experts", "n_routed_experts")
        # An exception through accelerate's hooks would leave offloaded weights where they are.
        self._may_stop_early = not any(hasattr(module, "_hf_hook") for module in model.modules())
        self._passes = passes_over(self.base)
        self._causal: bool | None = None
        self._padded_tokens: dict[str, int | None] = {}
        self._runs_alone: dict[str, bool] = {}
        self._untried: set[str] = set()
        """Sites for whose trials there was no memory."""

    @property
    def overlaps(self) -> bool:
        """Whether the host is free while a batch that was launched is computed."""
        return self.device.type == "cuda"

    @property
    def draws_show(self) -> bool:
        """Whether random numbers that are drawn in a pass say that its values are of chance.

        Not those with which BigBird makes attention layers anew, whose weights it overwrites at once.
        """
        return not hasattr(self.base, "set_attention_type") or self.unknown_code or not self.is_plain()

    @property
    def batch_tokens(self) -> int:
        """Padded tokens in a batch when the user names no batch size."""
        return BATCH_TOKENS if self.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS

    def width(self, site: str) -> int | None:
        """Values per token, by the configuration."""
        if site == "router_logits":
            return self.n_experts
        hidden = getattr(self.config, "hidden_size", None)
        return getattr(self.config, "word_embed_proj_dim", hidden) if site == "final" else hidden

    def layers(self, site: str) -> Sequence[int]:
        """Return the layers that have `site`.

        Raises:
            UnsupportedModelError: `site` needs experts and the model has none.
        """
        if site in LAYERLESS_SITES:
            return [0]
        if site != "router_logits":
            return range(len(self.blocks))
        found = router_layers(self.blocks) if self.n_experts else []
        if not found:
            raise UnsupportedModelError(f"{self.name} has no experts, hence no router_logits. Read another site.")
        return found

    def compute(self, batch: Prompts, layers: Sequence[int], site: str, pool: Pool) -> list[Values]:
        """Run one padded batch (see `Source.compute`). Costs the forward pass up to the last layer asked for.

        Raises:
            torch.OutOfMemoryError: Whatever a library on the device says when there is no room for the batch.
        """
        return self.launch(batch, layers, site, pool)()

    def launch(self, batch: Prompts, layers: Sequence[int], site: str, pool: Pool) -> Callable[[], list[Values]]:
        """Start one padded batch; what is returned waits for its values and returns them.

        A GPU goes on by itself meanwhile, so that the host can keep the values of the batch before.

        Raises:
            torch.OutOfMemoryError: As `compute`.
        """
        ids, mask = pad(batch.arrays())
        lengths = mask.sum(dim=1)
        # Sent before the pass, and once: within it, sending would wait for what runs.
        chosen = to_device(lengths if pool is not None else mask.flatten().nonzero()[:, 0], self.device)
        local = {chosen.device: chosen}

        def read(hidden: Tensor) -> Tensor:
            if hidden.device not in local:  # a model over several devices
                local[hidden.device] = chosen.to(hidden.device)
            where = local[hidden.device]
            return pack_tokens(hidden, where) if pool is None else pool_tokens(hidden, where, pool)

        try:
            arriving = to_host(self._forward(ids, mask, layers, site, read))
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError) or not says_no_memory(error):
                raise
            raise torch.cuda.OutOfMemoryError(str(error)) from error

        def finish() -> list[Values]:
            values = arriving()
            return [each.split(lengths.tolist()) for each in values] if pool is None else [*values]

        return finish

    def causal(self) -> bool:
        """Whether raw values may be kept by token prefix: by what the configuration says *and* by a probe.

        The probe (one forward pass of eight tokens, once) changes the last token and asks that nothing before it moves.
        """
        if self._causal is None:
            self._causal = (
                self.declared_causal()
                and self._observed_causal()
                # Others' hooks may count from the end, which shows at another length only.
                and (self.is_plain() or self.padded_tokens("block_out") is None)
            )
        return self._causal

    def padded_tokens(self, site: str) -> int | None:
        """Return how long batches may be in which prompts are padded: None for any length, 0 where none may be.

        A causal model cannot see what lies on the right. Others are tried, once for each site (see `shows_padding`);
        what cannot be tried is not padded.
        """
        if site not in self._padded_tokens:
            found = self.alike_tokens() if self._is_blind_to_padding(site) else 0
            if self._padded_tokens.setdefault(site, found) == 0:  # one answer for all threads
                logger.info("%s: padding shows in %s, so only prompts of one length run together", self.name, site)
        return self._padded_tokens[site]

    def runs_alone(self, site: str) -> bool:
        """Return whether each prompt must run by itself.

        Tried once for each site, and only where padding shows: whatever depends on the prompts beside it does on those.
        What shares something out among all tokens is believed untried: it may run out of it in larger batches only.
        """
        if site not in self._runs_alone:
            alone = shown = self.padded_tokens(site) == 0
            if shown and not self.shares_among_tokens:
                alone = self.alike_tokens() != 0 and self._tried(shows_company, site) is not False
            self._runs_alone[site] = alone
            if self._runs_alone[site]:
                logger.info("%s: the prompts beside a prompt show in %s, so each runs by itself", self.name, site)
        return self._runs_alone[site]

    def run_briefly(self, n_tokens: int) -> None:
        """Run one pass over a few tokens, for what it leaves on the model."""
        ids = torch.arange(n_tokens, device="cpu").remainder(self.vocabulary or 2)[None]
        self._forward(ids, torch.ones_like(ids), [0], "final", lambda values: values)

    def at_rest(self) -> AbstractContextManager[None]:
        """Return a context within which no pass of another thread has left anything on the model, as far as known."""
        return self._passes.none_running()

    def renewed(self) -> ModelSource:
        """Return a source that tries again what there was no memory to try; this one, where there was.

        A call keeps to one source, so that all its entries are named by one answer.
        """
        if not self._untried:
            return self
        out = copy.copy(self)
        out._padded_tokens = {site: each for site, each in self._padded_tokens.items() if site not in self._untried}
        out._runs_alone = {site: each for site, each in self._runs_alone.items() if site not in self._untried}
        out._untried = set()
        return out

    def _forward(
        self, ids: Tensor, mask: Tensor, layers: Sequence[int], site: str, read: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        return self._passes.run(
            self.model,
            self.base,
            lambda: self._pass(ids, mask, layers, site, read),
            again=lambda: self._pass(ids[:1], mask[:1], layers, site, lambda values: values),
            may_undo=lambda: self._may_stop_early and self.is_plain(),
        )

    def _pass(
        self, ids: Tensor, mask: Tensor, layers: Sequence[int], site: str, read: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        thread = threading.get_ident()
        kept: dict[int, Tensor] = {}
        modules = self._modules(layers, site)
        here = self.device
        sent = to_device(ids, here)
        ours: list[bool] = []
        """For each pass that runs in this thread, one within the other, whether it is this one."""

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == thread:
                ours.append(kwargs.get("input_ids") is sent)

        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == thread and ours:  # not where a hook before `begin` has failed
                ours.pop()

        def keep(layer: int, value: Any) -> None:
            # A signal handler, or somebody's hook, may run the model in the midst of this.
            if threading.get_ident() != thread or not (ours and ours[-1]):
                return
            if layer in kept:
                raise UnsupportedModelError(
                    f"{self.name}: the module of site={site!r}, layer {layer} runs twice in one forward pass, so it "
                    "has no one value. Pass extractor=."
                )
            kept[layer] = read(self._as_tokens(value, ids.shape, site, layer))
            if len(kept) == len(modules) and self._may_stop_early:
                raise _EverythingRead

        hooks = PassHooks()
        try:
            for layer, module in modules.items():
                if site == "embed":
                    hooks.before(module, _reader_before(keep, layer))
                else:
                    hooks.after(module, _reader_after(keep, layer, logits=site == "router_logits"))
            hooks.before(self._entry, begin, first=True)
            hooks.after(self._entry, end, always=True)
            with torch.no_grad():
                self._entry(input_ids=sent, attention_mask=to_device(mask, here), **self._switched_off())
        except _EverythingRead:
            pass
        finally:
            hooks.live = False
            hooks.remove()
        if len(kept) != len(modules):
            missing = sorted(set(modules) - set(kept))
            raise UnsupportedModelError(
                f"{self.name}: the modules of site={site!r}, layers {missing} were not called, so their values cannot "
                "be read (a compiled or fused model?). Read another site, or pass extractor=."
            )
        return [kept[layer] for layer in layers]

    def _switched_off(self) -> dict[str, bool]:
        """Return what must not happen on the way, as far as the model knows of it."""
        taken = inspect.signature(self._entry.forward).parameters
        anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        names = ("use_cache", "output_hidden_states", "output_attentions")
        return {name: False for name in names if anything or name in taken}

    def _modules(self, layers: Sequence[int], site: str) -> dict[int, nn.Module]:
        if site == "embed":
            return {0: self.blocks[0]}
        if site == "final":
            return {0: self.base}
        if site == "block_out":
            return {layer: self.blocks[layer] for layer in layers}
        return {layer: find_submodule(self.blocks[layer], site, layer, self.n_experts) for layer in layers}

    def _as_tokens(self, value: Any, shape: torch.Size, site: str, layer: int) -> Tensor:
        hidden = first_tensor(value)
        if isinstance(hidden, Tensor):
            if hidden.ndim == 2 and len(hidden) == shape[0] * shape[1]:  # routers and OPT flatten the batch
                hidden = hidden.unflatten(0, tuple(shape))
            wrong_width = site == "router_logits" and hidden.shape[-1] != self.n_experts
            if hidden.ndim == 3 and hidden.shape[:2] == shape and not wrong_width:
                return hidden
        got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise UnsupportedModelError(
            f"{self.name}: site={site!r} of layer {layer} gave {got} for a batch of {tuple(shape)} tokens; expected "
            "[n_prompts, n_tokens, width]. Read another site, or pass extractor=."
        )

    def _find_blocks(self) -> list[nn.Module]:
        n_layers = getattr(self.config, "num_hidden_layers", None)
        if not isinstance(n_layers, int):
            raise UnsupportedModelError(f"{self.name}: its config does not say num_hidden_layers. Pass extractor=.")
        tower: Any = self.base
        if self.config is not self.model.config and hasattr(tower, "get_decoder"):
            tower = tower.get_decoder()  # models that also see or hear have more towers of blocks than the text's
        return find_blocks(tower if isinstance(tower, nn.Module) else self.base, n_layers)

    def _is_blind_to_padding(self, site: str) -> bool:
        if self.max_tokens == 0 or self.alike_tokens() == 0 or self.shares_among_tokens:
            return False
        try:
            if self.is_plain() and (self._says_causal() or self.causal()):
                return True
        except Exception as error:
            logger.debug("%s: whether it is causal could not be tried: %r", self.name, error)
        return self._tried(shows_padding, site) is False

    def _tried(self, shows: Callable[..., bool], site: str) -> bool | None:
        """Return what a trial says; None when it could not be made, for an error that came again at once."""

        def run(ids: Tensor, mask: Tensor) -> list[Tensor]:
            return self._forward(ids, mask, self.layers(site), site, lambda values: values.cpu().clone())

        limits = [each for each in (self.max_tokens, self.alike_tokens()) if each]
        no_memory = False
        for _ in range(2):
            try:
                return shows(
                    run,
                    vocabulary=self.vocabulary or 2,
                    max_tokens=min(limits, default=None),
                    rounding=rounding_of(self.dtype, self.device),
                )
            except Exception as error:
                logger.debug("%s: site %r could not be tried: %r", self.name, site, error)
                no_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
                    isinstance(error, RuntimeError) and says_no_memory(error)
                )
        if no_memory:
            self._untried.add(site)
        return None

    def _says_causal(self) -> bool:
        """Whether the kind of model and all that attends in it say so: then pooled values cost no probe."""
        said = {getattr(module, "is_causal", None) for module in self.base.modules()}
        return True in said and False not in said and self.declared_causal()

    def is_plain(self) -> bool:
        """Whether only the modules' own code runs: nobody's hooks, no `forward` but those that accelerate placed."""
        modules = list(self.model.modules())
        hooks = foreign_hooks([*global_hooks(), *(each for module in modules for each in own_hooks(module))])
        return not hooks and not any(has_own_forward(each) and not hasattr(each, "_hf_hook") for each in modules)

    def _observed_causal(self) -> bool:
        vocabulary = self.vocabulary or 2
        ids = torch.arange(8, device="cpu").remainder(vocabulary).repeat(2, 1)
        ids[1, -1] = (ids[1, -1] + 1) % vocabulary
        last = len(self.blocks) - 1
        try:
            (hidden,) = self._forward(ids, torch.ones_like(ids), [last], "block_out", lambda values: values.clone())
        except UnsupportedModelError:  # its blocks cannot be read; its final states may be
            return False
        return vocabulary > 1 and torch.equal(hidden[0, :-1], hidden[1, :-1])


def _reader_before(keep: Callable[[int, Any], None], layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(layer, args[0] if args else kwargs.get("hidden_states"))

    return hook


def _reader_after(keep: Callable[[int, Any], None], layer: int, *, logits: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(layer, logits_of(module, output) if logits else output)

    return hook
