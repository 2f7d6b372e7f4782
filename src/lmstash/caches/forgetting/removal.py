"""Finding the entries of one prompt in a store, and removing them."""

from __future__ import annotations

from collections.abc import Sequence

from lmstash.caches.forgetting import activations, kv, logprobs, states
from lmstash.caches.forgetting.asked import Asked, Tokenizer
from lmstash.caches.forgetting.trail import Trail, roots_said
from lmstash.caches.kv.naming import KIND as KV
from lmstash.caches.models import read_digests
from lmstash.caches.responses.answers import finding
from lmstash.caches.states import naming
from lmstash.identity.chain import chain_root
from lmstash.identity.tokens import TokenIds, digest_text
from lmstash.store.base import Removed, Store

LOGPROBS = "logprobs"
TEXTS = "prompts/"
"""Where lists of token ids by text are kept."""
_STATES = frozenset({naming.KIND, naming.SCORES, naming.ENDS})
_CHAINED = _STATES | {KV, LOGPROBS}


def forget(
    store: Store,
    prompt: str | TokenIds,
    *,
    tokenizer: Tokenizer | None = None,
    salt: bytes | str | None = None,
    dry_run: bool = False,
) -> Removed:
    """Do what `Stash.forget` says, with what is in a store.

    KV, states and log-probabilities are of a prompt as far as they and it are alike to the end of either, within blocks
    of 64 tokens: its own blocks, which others that begin alike share; beginnings of its last block; and what goes on
    from its end in that block. Later blocks hold none of its tokens and stay.

    Args:
        store: Where to look.
        prompt: A text, or token ids.
        tokenizer: Makes ids of a text.
        salt: Of the chains of described models. Where a model is not described, every salt's are looked through.
        dry_run: Only count.

    Raises:
        InvalidArgumentError: `prompt` is neither text nor token ids, or the tokenizer returns none.
    """
    asked = Asked.of(prompt, tokenizer)
    gone: set[bytes] = set()
    if asked.text is not None:
        gone |= _by_text(store, asked.text)
    if asked.names:
        gone |= activations.meant(store, asked.names) | _by_chain(store, asked.names, salt)
    removed = [store.prune(namespace=TEXTS, dry_run=dry_run)]
    if gone:
        removed.append(store.prune(lambda entry: entry.key in gone, dry_run=dry_run))
    if asked.text:
        removed.append(finding.forget(store, asked.text, salt=salt, dry_run=dry_run))
    return Removed(sum(each.entries for each in removed), sum(each.nbytes for each in removed))


def _by_text(store: Store, text: str) -> set[bytes]:
    name = digest_text(text)
    return {
        entry.key for entry in store.entries() if entry.meta.get("text_id") == name or entry.meta.get("text") == text
    }


def _by_chain(store: Store, names: Sequence[bytes], salt: bytes | str | None) -> set[bytes]:
    """Return the keys of what is named by the token-block chain."""
    digests = read_digests(store)
    kinds: dict[str, set[str]] = {}
    for each in store.info().namespaces:
        kind, _, model = each.namespace.partition("/")
        if kind in _CHAINED:
            kinds.setdefault(model, set()).add(kind)
    gone: set[bytes] = set()
    for model, kept in kinds.items():
        roots = [chain_root(digests[model], salt=salt)] if model in digests else _roots_said(store, model)
        trails = [Trail(root, name) for root in roots for name in names]
        if KV in kept:
            gone |= kv.meant(store, f"{KV}/{model}", trails)
        if LOGPROBS in kept:
            gone |= logprobs.meant(store, f"{LOGPROBS}/{model}", trails)
        if kept & _STATES:
            gone |= states.meant(store, model, trails)
    return gone


def _roots_said(store: Store, model: str) -> set[bytes]:
    """Return the roots of a model that is not described: what is kept at the beginning of prompts says them."""
    said = logprobs.roots_said(store, store.entries(f"{LOGPROBS}/{model}"))
    for kind in (KV, naming.KIND):
        said |= roots_said(store.entries(f"{kind}/{model}"))
    return said
