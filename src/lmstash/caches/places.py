"""The names of sites and poolings. Here, and not where they are used, because the command line asks without torch."""

SITES = ("block_out", "embed", "attn_out", "mlp_out", "router_logits", "final")
"""Every site. `block_out` of layer i is what block i returns (the last one is before the final norm); `embed` is what
enters block 0; `attn_out` and `mlp_out` are what the attention and the MLP return, before the residual is added (and
before a norm, a gate or a factor with which some families' blocks add them: Gemma 2, Doge, Granite); `router_logits`
are a mixture-of-experts gate's; `final` is what leaves the base model (after the final norm, where there is one)."""

POOLS = ("last", "first", "mean", "max")
"""The poolings that have a name; the others are a token's index, and None for raw."""
