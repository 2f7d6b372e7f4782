"""Keeps what a language model has computed, so that nobody computes it twice.

    import lmstash

    stash = lmstash.open()
    acts = stash.activations(model, tokenizer)
    X = acts(prompts, layers=[3, 7], pool="last")

Importing this loads nothing heavy: numpy, torch and the rest come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmstash.unset import UNSET

if TYPE_CHECKING:
    import os

    from lmstash.identity.models.fingerprinting import Fingerprint
    from lmstash.stash import Stash

__version__ = "0.1.0"
__all__ = ["Stash", "__version__", "fingerprint", "open"]


def open(
    location: Any = UNSET,
    *,
    capacity_bytes: int | str | None = UNSET,
    memory_bytes: int | str | None = UNSET,
    ttl_seconds: float | None = None,
    strict: bool = UNSET,
    read_only: bool = UNSET,
    private: bool = UNSET,
    compress: bool = UNSET,
    salt: str | bytes | None = UNSET,
    policy: str = "lru",
    local: str | os.PathLike[str] | None = None,
    trust_env: bool = True,
) -> Stash:
    """Open a stash: a folder, or `memory://`.

    A folder that cannot be used (no permission, a network file system, damage beyond repair) gives a stash that keeps
    nothing and says why once, so that the host program goes on; with `strict=True` it raises instead.

    Args:
        location: A folder (made if missing), or `"memory://"`. Default: `$LMSTASH_DIR`, else
            `$XDG_CACHE_HOME/lmstash`, else `~/.cache/lmstash`.
        capacity_bytes: The limit on all the folder takes, in bytes or as `"50GB"`; None is unlimited, 0 keeps nothing.
            Default: what the folder was last given, else 50 GiB or half of the free disk, whichever is less. Under
            1 MiB, which an empty folder takes, nothing is added and what is there stays.
        memory_bytes: A RAM tier in front of the folder (default: none; the operating system caches files already).
        ttl_seconds: How long what the stash's caches keep is served; None for ever. (`stash.store.put` takes its own.)
        strict: Raise on faults instead of counting them as misses and drops.
        read_only: Serve and never write.
        private: Keep no text beside the values.
        compress: Compress responses with zstd (needs the extra `zstd`, and so do all who read them).
        salt: Tenant salt: stashes with different salts never share entries.
        policy: What goes first when room is needed: `"lru"`.
        local: The folder in front of `s3://` or `valkey://`, which come with a later release.
        trust_env: Whether environment variables and the config file count.

    Returns:
        A `Stash`; any number of threads and processes may have the same folder open.

    Raises:
        InvalidArgumentError: An argument, variable or config value cannot be read, or names what does not exist.
        StoreUnavailableError: With `strict=True`, the folder cannot be used.
        CapacityError: With `strict=True`, the limit is under 1 MiB, and not 0.
    """
    from lmstash.stash import open_stash

    return open_stash(
        location,
        capacity_bytes=capacity_bytes,
        memory_bytes=memory_bytes,
        ttl_seconds=ttl_seconds,
        strict=strict,
        read_only=read_only,
        private=private,
        compress=compress,
        salt=salt,
        policy=policy,
        local=local,
        trust_env=trust_env,
    )


def fingerprint(model: Any, *, variant: str | None = None, strict_numerics: bool = False) -> Fingerprint:
    """Return who `model` is: a digest of everything that its results depend on.

    Args:
        model: A torch module, such as a transformers model.
        variant: Your own name for a change that lmstash cannot see (hooks, an overridden `forward`).
        strict_numerics: Let the torch version and the device count too.

    Raises:
        UnsupportedModelError: The model cannot be identified safely (meta device, dropout in training mode, hooks).
    """
    from lmstash.identity.models.fingerprinting import fingerprint_model

    return fingerprint_model(model, variant=variant, strict_numerics=strict_numerics)


def __getattr__(name: str) -> Any:
    if name == "Stash":
        from lmstash.stash import Stash

        return Stash
    raise AttributeError(f"module 'lmstash' has no attribute {name!r}")
