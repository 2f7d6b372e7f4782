"""How equal a restored prefix is: SmolLM2-135M, float32, prefixes of 200 and 1,000 tokens, 24 more, 24 generated.

Each line compares the logits of the last position, and the tokens generated greedily, with another way of computing
them: going on with the live cache, one pass over everything, KV kept rounded. Then next-token log-probabilities of 64
contexts, computed in a batch and read again by another cache, in each form, against one pass over each context.
"""

from __future__ import annotations

from typing import Any

import torch
from measuring import Report, Scratch, arguments
from workloads import SMOLLM2, quiet

SUFFIX, NEW = 24, 24


def ids_of(n_tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40_000, (1, n_tokens), generator=generator)


def logits(model: Any, ids: torch.Tensor, past: Any = None, start: int = 0) -> torch.Tensor:
    positions = torch.arange(start, ids.shape[1])[None]
    with torch.no_grad():
        out = model(ids[:, start:], past_key_values=past, position_ids=positions, use_cache=True, logits_to_keep=1)
    return out.logits[0, -1]


def restored(model: Any, scratch: Scratch, ids: torch.Tensor, n_kept: int, dtype: str | None) -> tuple[Any, Any]:
    """Return logits and text after the first `n_kept` tokens came from a folder."""
    import lmstash

    folder = scratch.fresh("kv")
    with lmstash.open(folder, strict=True, trust_env=False) as stash:
        stash.kv(model, storage_dtype=dtype).prefill(ids[:, :n_kept])
    with lmstash.open(folder, strict=True, trust_env=False) as stash:
        kv = stash.kv(model, storage_dtype=dtype)
        past, n = kv.past(ids)
        assert n == n_kept, (n, n_kept)
        found = logits(model, ids, past, n)
        text = kv.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return found, text


def reread(model: Any, scratch: Scratch) -> list[list[Any]]:
    """Return lines about log-probabilities: as first answered, and as read again from a folder."""
    import lmstash

    shared = ids_of(96, 7)[0].tolist()
    contexts = [shared[: 32 + number] for number in range(64)]
    alone = torch.stack([torch.log_softmax(logits(model, torch.tensor([each])).float(), -1) for each in contexts])
    rows: list[list[Any]] = []
    for form in ("hidden", "exact", "uint16"):
        folder = scratch.fresh(form)
        with lmstash.open(folder, strict=True, trust_env=False) as stash:
            first = stash.logprobs(model, keep=form).batch_next_token_logprobs(contexts)
        with lmstash.open(folder, strict=True, trust_env=False) as stash:
            again = stash.logprobs(model, keep=form).batch_next_token_logprobs(contexts)
        for name, left, right in (
            ("first answer, one pass over each", first, alone),
            ("read again, first answer", again, first),
        ):
            rows.append(
                [form, name, float((left - right).abs().max()), int((left.argmax(-1) == right.argmax(-1)).sum())]
            )
    return rows


def main() -> None:
    args = arguments(__doc__)
    quiet()
    from transformers import DynamicCache

    from lmstash.cli.demo.model import load

    model = load(SMOLLM2)[0]
    report = Report("exactness", quick=args.quick)
    rows: list[list[Any]] = []
    with Scratch(args.dir) as scratch:
        for n_kept in (200, 1000):
            ids = ids_of(n_kept + SUFFIX, n_kept)
            live = DynamicCache(config=model.config)
            logits(model, ids[:, :n_kept], live)
            continued = logits(model, ids, live, n_kept)
            whole = logits(model, ids)
            text = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
            for dtype in (None, "float16", "bfloat16"):
                found, said = restored(model, scratch, ids, n_kept, dtype)
                kept = "exactly" if dtype is None else dtype
                for name, other in (("going on with the live cache", continued), ("one pass over everything", whole)):
                    difference = float((found - other).abs().max())
                    rows.append(
                        [f"{n_kept} tokens kept {kept}", name, difference, int((said == text).sum() - ids.numel())]
                    )
        kept_rows = reread(model, scratch)
    columns = ["restored", "against", "greatest difference of a logit", f"of {NEW} greedy tokens equal"]
    report.table("Logits after a restored prefix", columns, rows)
    columns = ["kept as", "compared", "greatest difference of a log-probability", "of 64 likeliest tokens equal"]
    report.table("Next-token log-probabilities", columns, kept_rows)
    report.finish()


if __name__ == "__main__":
    main()
