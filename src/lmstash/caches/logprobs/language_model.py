"""A causal language model as this cache runs it, and what it was seen to bear: padding, cutting its KV, its head alone.

What is read off the configuration is only who is asked; whether it is true is seen by a probe: some forward passes of
eleven tokens, once, whose results must agree with plain ones. What fails is done without.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from lmstash.caches.drawing import moved, torch_states
from lmstash.caches.logprobs.head import Head, log_softmax
from lmstash.caches.logprobs.kv_form import KVForm
from lmstash.caches.logprobs.plan import Feed
from lmstash.caches.pass_hooks import PassHooks
from lmstash.caches.torch_model import TorchModel
from lmstash.errors import UnsupportedModelError
from lmstash.events import logger

_PROBE_TOKENS = 11


class Reuse(IntEnum):
    """How much of a forward pass serves more than one context."""

    NOTHING = 0
    """Each context is computed whole, beside others of its own length only."""
    INSIDE = 1
    """A pass serves every prefix of its tokens, beside others of any length."""
    KV = 2
    """Besides, it may go on from any prefix whose K and V rows are at hand."""


class LanguageModel(TorchModel):
    """One model as it is now. For one thread at a time.

    Attributes:
        reuse: What was found to be safe.
        form: What KV looks like; only with `Reuse.KV`.
        head: Makes rows of final hidden states; None where final states are the log-probabilities themselves.
        max_tokens: Longest context that there are positions for; None for rotary embeddings, which go on.
        n_logits: Numbers in a row.
        finals: An example of final states, `[1, width]`.
        runs_alone: Whether no two contexts may lie in one batch, of one length though they be.
        n_drawn: How many batches drew at random while they ran.
    """

    def __init__(self, model: Any, *, unknown_code: bool = False) -> None:
        """Look at `model` and probe it (four passes of eleven tokens); takes what `TorchModel` takes.

        Raises:
            UnsupportedModelError: It is no causal language model, or as `TorchModel`.
        """
        super().__init__(model, unknown_code=unknown_code)
        if self.whole is not model and (model._forward_hooks or model._forward_pre_hooks):
            raise UnsupportedModelError(f"{self.name} has hooks on its adapter's wrapper, which is not what is called.")
        if self._rotates():
            self.max_tokens = None
        self.reuse = Reuse.NOTHING
        self.n_drawn = 0
        self.form: KVForm | None = None
        self.head: Head | None = None
        self._entry: Any = self.whole
        self._settings = self._known_settings()
        ids = torch.arange(_PROBE_TOKENS, device="cpu") * 7 % max(2, self.vocabulary or 2)
        both = torch.stack([ids, ids.flip(0)])
        logits, hidden = self._plain(both)
        if logits.ndim != 3 or logits.shape[:2] != both.shape:
            raise UnsupportedModelError(
                f"{self.name} gives {tuple(logits.shape)} for {tuple(both.shape)} tokens, no logits for each. "
                "Pass a causal language model (AutoModelForCausalLM)."
            )
        self.n_logits = logits.shape[2]
        if hidden is not None and self.may_skip_head() and not unknown_code:
            self._find_head(hidden, logits)
        expected = log_softmax(logits) if self.head is None or hidden is None else hidden
        self.finals = expected[0, :1]
        self.runs_alone = unknown_code or self.shares_among_tokens
        if self.declared_causal():
            self._find_reuse(both, expected)
            # The trial shows no company by itself. What fails it may share something out among a batch.
            self.runs_alone = self.reuse is Reuse.NOTHING
        logger.debug("%s: head %s, reuse of %s", self.name, "alone" if self.head else "whole", self.reuse.name)

    def run(self, feeds: Sequence[Feed], starts: Sequence[int], end: int, cache: Any = None) -> Tensor:
        """Feed one batch and return the final states that were asked for, in the order of feeds and reads.

        Args:
            feeds: One for each row.
            starts: First column of each row's past.
            end: Columns of all pasts.
            cache: Of transformers, over the rows' KV; filled by the pass.

        Returns:
            `[n_reads, hidden]` on the model's device; log-probabilities `[n_reads, vocabulary]` without a head.
        """
        from lmstash.caches.logprobs.kv_rows import mask_of

        counts = [feed.n_tokens for feed in feeds]
        ids = torch.zeros((len(feeds), max(counts)), dtype=torch.int64, device="cpu")
        past = torch.tensor([feed.n_past for feed in feeds], device="cpu")
        for row, feed in enumerate(feeds):
            tokens = torch.frombuffer(bytearray(feed.context[4 * feed.n_past :]), dtype=torch.int32)
            ids[row, : counts[row]] = tokens.to(torch.int64) & 0xFFFFFFFF
        positions = past[:, None] + torch.arange(ids.shape[1], device="cpu")
        if self.max_tokens is not None:
            positions.clamp_(max=self.max_tokens - 1)  # padding may go beyond what there is an embedding for
        rows = [row for row, feed in enumerate(feeds) for _ in feed.reads]
        columns = [length - feed.n_past - 1 for feed in feeds for length in feed.reads]
        mask = mask_of(starts, end, counts, self.device)
        before = torch_states()
        out = self._forward(ids, mask, positions, cache)
        self.n_drawn += bool(moved(before, torch_states()))
        found = out[_indices(rows, out), _indices(columns, out)]
        return found if self.head is not None else log_softmax(found)

    def reset(self) -> None:
        """Feed one token alone: rotary embeddings that grew with a long context shrink again.

        They would stay as they are for a shorter context, so that its answer would depend on what came before it; and
        they are a part of the model, which would look changed.
        """
        ids = torch.zeros((1, 1), dtype=torch.int64, device="cpu")
        self._forward(ids, None, ids)

    def rows(self, finals: Tensor) -> Tensor:
        """Return log-probabilities `[n, vocabulary]` in float32 on the CPU for final states."""
        return finals if self.head is None else self.head.rows(finals.to(self.device))

    def picked(self, finals: Tensor, tokens: Tensor) -> Tensor:
        """Return the log-probability of one token for each final state, `[n]` float32 on the CPU."""
        if self.head is None:
            return finals.gather(1, tokens[:, None])[:, 0]
        return self.head.picked(finals, tokens)

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any = None) -> Tensor:
        """Return what the entry gives for each token: hidden states, or logits without a head."""
        settings = dict(self._settings)
        if "position_ids" in settings:
            settings["position_ids"] = positions.to(self.device)
        if cache is not None:
            settings[self._cache_name] = cache
            settings["use_cache"] = True
        with torch.no_grad():
            out = self._entry(input_ids=ids.to(self.device), attention_mask=mask, **settings)
        if self._entry is self.whole and not isinstance(out, tuple) and getattr(out, "logits", None) is None:
            raise UnsupportedModelError(
                f"{self.name} ({type(self.whole).__name__}) gives no logits. Pass a causal language model "
                "(AutoModelForCausalLM)."
            )
        return out[0]

    def _known_settings(self) -> dict[str, Any]:
        """Return the arguments of the entry that matter here, as far as it knows of them."""
        taken = inspect.signature(self._entry.forward).parameters
        anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        off = ("use_cache", "output_hidden_states", "output_attentions")
        settings: dict[str, Any] = {name: False for name in off if anything or name in taken}
        if "position_ids" in taken and not self._counts_from_padding():
            settings["position_ids"] = None
        self._cache_name = next((name for name in ("cache", "past_key_values") if name in taken), "")
        return settings

    def _counts_from_padding(self) -> bool:
        """Whether positions are counted by the model itself, from the padding token's on, as RoBERTa does."""
        return any(
            isinstance(module, torch.nn.Embedding)
            and module.padding_idx is not None
            and path.endswith("position_embeddings")
            for path, module in self.base.named_modules()
        )

    def _rotates(self) -> bool:
        """Whether positions are rotary embeddings made for any position, and no table."""
        modules = list(self.base.modules())
        tables = [each for each in modules if isinstance(each, torch.nn.Embedding) and each is not self._embeddings]
        limit = self.max_tokens or 0
        rotary = any("Rotary" in type(each).__name__ for each in modules)
        return rotary and not any(limit <= each.num_embeddings <= limit + 8 for each in tables)

    # --- the probe ------------------------------------------------------------------------------------------------

    def _plain(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits and, where the base gives any, final hidden states, `[n_rows, n_tokens, width]` each."""
        # OPT's causal model calls its base's decoder, others their base, which may call its decoder.
        towers = [
            each for each in (self.base, getattr(self.base, "decoder", None)) if isinstance(each, torch.nn.Module)
        ]
        hidden: dict[Any, list[Any]] = {tower: [] for tower in towers if tower is not self.whole}

        def keep(module: Any, args: Any, output: Any) -> None:
            hidden[module].append(output[0])

        hooks = PassHooks()
        try:
            for tower in hidden:
                hooks.after(tower, keep)
            logits = self._forward(ids, None, torch.arange(ids.shape[1], device="cpu").expand_as(ids))
        finally:
            hooks.live = False
            hooks.remove()
        for found in hidden.values():
            if found:
                fits = len(found) == 1 and isinstance(found[0], Tensor) and found[0].shape[:2] == ids.shape
                return logits, found[0] if fits else None
        return logits, None

    def _find_head(self, hidden: Tensor, logits: Tensor) -> None:
        """Use the base and the head apart if together they give what the whole model gives."""
        try:
            head = Head(self)
            with torch.no_grad():
                again, alone = head.logits(hidden[0]), head.logits(hidden[1, -1:])
        except Exception as error:  # whatever a family's code raises when its base is replaced
            logger.debug("%s: the head cannot be run alone: %s", self.name, error)
            return
        if agree(again, logits[0]) and agree(alone, logits[1, -1:]):
            self.head = head
            self._entry = self.base
            self._settings = self._known_settings()
        else:
            logger.debug("%s: the head alone gives other logits than the model", self.name)

    def _find_reuse(self, ids: Tensor, expected: Tensor) -> None:
        """See whether padding and cut KV change anything."""
        tokens, other = [row.to(torch.int32).numpy().tobytes() for row in ids]
        try:
            # Llama 4 scales by the column, and only from some thousand tokens on: no probe would see it.
            form = None if getattr(self.config, "attn_temperature_tuning", False) else self._cuttable()
            if form is not None and self._bears_cutting(form, tokens, other, expected):
                self.form, self.reuse = form, Reuse.KV
                return
        except Exception as error:  # whatever a family's code raises for a cache that is not its own
            logger.debug("%s: its KV cannot be cut: %s", self.name, error)
        padded = self.run([Feed(tokens, 0, [3, 11]), Feed(other[:24], 0, [2, 6])], [0, 0], 0)
        if agree(padded, torch.cat([expected[0, [2, 10]], expected[1, [1, 5]]])):
            self.reuse = Reuse.INSIDE

    def _bears_cutting(self, form: KVForm, tokens: bytes, other: bytes, expected: Tensor) -> bool:
        """See whether passes that are padded on the right, then go on padded on the left, give what plain ones do."""
        from lmstash.caches.logprobs.kv_rows import KVRows

        rows = KVRows(form, 0)
        rows.seat([b"", b""], 6)
        first = self.run([Feed(tokens[:24], 0, [2, 6]), Feed(other[:16], 0, [4])], [0, 0], 0, rows.cache())
        rows.end = 6
        kept = [each.clone() for each in rows.added(1, 0, 4)]
        rows.name(0, tokens[:24])
        rows.seat([tokens[:24], other[:16]], 5)
        for mine, theirs in zip(rows.fill(1), kept, strict=True):
            mine.copy_(theirs)
        feeds = [Feed(tokens, 6, [7, 11]), Feed(other[:28], 4, [5, 7])]
        second = self.run(feeds, rows.starts, rows.end, rows.cache())
        wanted = [expected[0, [1, 5]], expected[1, [3]], expected[0, [6, 10]], expected[1, [4, 6]]]
        return agree(torch.cat([first, second]), torch.cat(wanted))

    def _cuttable(self) -> KVForm | None:
        """Return the form of the model's KV if every layer keeps plain rows for each token.

        Layers with a sliding window do, too, if they are given a cache that keeps all rows: their mask is made from
        the configuration.
        """
        try:
            from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
        except ImportError:  # an older transformers
            return None
        if not self._cache_name or getattr(self.model, "_is_stateful", False):
            return None
        own = DynamicCache(config=self.config)
        if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in own.layers):
            return None
        trial = DynamicCache()
        self._forward(torch.zeros((1, 2), dtype=torch.int64, device="cpu"), None, torch.arange(2)[None], trial)
        if any(type(layer) is not DynamicLayer for layer in trial.layers):
            return None
        if own.layers and len(own.layers) != len(trial.layers):
            return None
        return KVForm.of(trial.layers)


def _indices(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results are the same but for the order in which sums were taken."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if torch.equal(ours, theirs):
        return True
    tolerance = 1e-4 if torch.finfo(ours.dtype).bits >= 32 else 3e-2
    scale = float(theirs.float().abs().max())
    return bool((ours.float() - theirs.float()).abs().max() <= tolerance * max(scale, 1e-6))
