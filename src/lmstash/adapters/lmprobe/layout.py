"""Reads the folders that lmprobe writes (layouts v1 and v2), and never writes to them.

::

    <folder>/<model hash>/_model_name.txt, _manifest.jsonl          names and prompts, where they were kept
    <folder>/<model hash>/<prompt hash>.safetensors                 v2: layers, mask, pooled values, router logits
    <folder>/<model hash>/<prompt hash>.logits.safetensors          v2: logits, or the top k of them
    <folder>/<model hash>/<prompt hash>.perplexity.safetensors      v2: perplexity, by token, token ids
    <folder>/<model hash>/<prompt hash>/layer_3.pt, pooled_mean/layer_3.pt, attention_mask.pt, perplexity.pt     v1

A hash is the first 16 hex digits of a SHA-256. The files carry neither checksum nor identity: what they say is taken
with its shape checked, and anything that does not fit is reported and left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmstash.adapters.lmprobe.torchfile import read_torch_tensor
from lmstash.errors import CorruptEntryError, StoreUnavailableError

if TYPE_CHECKING:
    from torch import Tensor

MASK = "attention_mask"
_HASH = re.compile(r"[0-9a-f]{16}")
_PROMPT_FILE = re.compile(r"([0-9a-f]{16})(\.logits|\.perplexity)?\.safetensors")
_TENSOR = re.compile(
    r"layer_\d+|router_layer_\d+|pooled_.+_layer_\d+|attention_mask|logits|logits_top_k_(values|indices)"
    r"|perplexity|token_perplexity|token_ids"
)
_V1_FILE = re.compile(r"layer_\d+|attention_mask|perplexity")
_V1_POOLED_FILE = re.compile(r"layer_\d+")
_BESIDE = {"_model_name.txt", "_manifest.jsonl"}


def hash16(text: str) -> str:
    """Return the 16 hex digits by which lmprobe names a model or a prompt."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class LayoutPrompt:
    """Where the tensors of one prompt lie."""

    prompt_hash: str
    text: str | None
    """The prompt, where the manifest still knows it (lmprobe lists raw saves only)."""
    files: tuple[Path, ...]
    """`.safetensors` files of layout v2."""
    old_files: tuple[tuple[str, Path], ...]
    """(tensor name, `.pt` file) of layout v1."""


@dataclass(frozen=True, slots=True)
class LayoutModel:
    """One model's directory."""

    model_hash: str
    name: str | None
    """The model's name, where the folder says one that has this hash."""
    prompts: tuple[LayoutPrompt, ...]


@dataclass(slots=True)
class Layout:
    """What a folder holds, before any tensor is read."""

    folder: Path
    models: list[LayoutModel] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """What is not part of the per-prompt layouts, relative to the folder."""


@dataclass(slots=True)
class PromptTensors:
    """The tensors of one prompt, as far as they can be trusted to be what their names say."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By lmprobe's v2 names. `layer_<i>` is cut to the real tokens, `[n_tokens, hidden]`; the others are as kept."""
    n_tokens: int | None = None
    """Real tokens by the mask; None without a mask."""
    left_padded: bool = False
    """The mask begins with padding: position-dependent models may have computed wrong values."""
    problems: list[str] = field(default_factory=list)
    """One line for each file or tensor left out, and why."""


def read_layout(folder: Path) -> Layout:
    """List the models and prompts under `folder`. Costs one directory listing a model; opens no tensor file.

    Raises:
        StoreUnavailableError: The folder cannot be listed.
    """
    layout = Layout(folder)
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise StoreUnavailableError(f"cannot read {folder}: {error}. Give the folder that lmprobe wrote.") from error
    for child in children:
        if _HASH.fullmatch(child.name) and child.is_dir():
            layout.models.append(_read_model(child, layout))
        else:
            layout.ignored.append(child.name)
    return layout


def load_prompt(prompt: LayoutPrompt) -> PromptTensors:
    """Read every tensor of one prompt. Damage is put into `problems`; nothing is raised for it.

    Cost: reads the prompt's files once; memory is their size twice at most.
    """
    found = PromptTensors()
    raw: dict[str, Tensor] = {}
    for path in prompt.files:
        try:
            raw |= _read_safetensors(path, found.problems)
        except (CorruptEntryError, OSError) as error:
            found.problems.append(f"{path.name}: {error}")
    for name, path in prompt.old_files:
        if name in raw:
            continue
        try:
            raw[name] = read_torch_tensor(path)
        except (CorruptEntryError, OSError) as error:
            found.problems.append(f"{path.parent.name}/{path.name}: {error}")
    _check(raw, found)
    return found


def _read_model(directory: Path, layout: Layout) -> LayoutModel:
    name = _model_name(directory)
    texts = dict(_manifest(directory))
    files: dict[str, list[Path]] = {}
    old_files: dict[str, list[tuple[str, Path]]] = {}
    for child in sorted(directory.iterdir()):
        match = _PROMPT_FILE.fullmatch(child.name)
        if match and child.is_file():
            files.setdefault(match[1], []).append(child)
        elif _HASH.fullmatch(child.name) and child.is_dir():
            old_files[child.name] = list(_old_files(child, layout))
        elif child.name not in _BESIDE:
            layout.ignored.append(f"{directory.name}/{child.name}")
    prompts = (
        LayoutPrompt(each, texts.get(each), tuple(files.get(each, ())), tuple(old_files.get(each, ())))
        for each in sorted(files.keys() | old_files.keys())
    )
    return LayoutModel(directory.name, name, tuple(prompts))


def _model_name(directory: Path) -> str | None:
    try:
        name = (directory / "_model_name.txt").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    # The name is stripped when lmprobe reads it; either form may be the one that was hashed.
    return next((each for each in (name, name.strip()) if hash16(each) == directory.name), None)


def _manifest(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield (prompt hash, prompt) of each whole line whose text has the hash it claims."""
    try:
        lines = (directory / "_manifest.jsonl").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            said = json.loads(line)
            text = said["prompt"]
            if isinstance(text, str) and hash16(text) == said["hash"]:
                yield said["hash"], text
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # torn by a kill, as lmprobe's manifests sometimes are


def _old_files(directory: Path, layout: Layout) -> Iterator[tuple[str, Path]]:
    for child in sorted(directory.iterdir()):
        if child.suffix == ".pt" and _V1_FILE.fullmatch(child.stem) and child.is_file():
            yield child.stem, child
        elif child.name.startswith("pooled_") and child.is_dir():
            for each in sorted(child.iterdir()):
                if each.suffix == ".pt" and _V1_POOLED_FILE.fullmatch(each.stem) and each.is_file():
                    yield f"{child.name}_{each.stem}", each
                else:
                    layout.ignored.append(str(each.relative_to(layout.folder)))
        else:
            layout.ignored.append(str(child.relative_to(layout.folder)))


def _read_safetensors(path: Path, problems: list[str]) -> dict[str, Tensor]:
    from lmstash.codecs.tensors import decode_tensors

    tensors = decode_tensors(bytearray(path.read_bytes()), framework="torch")
    for name in [name for name in tensors if not _TENSOR.fullmatch(name)]:
        problems.append(f"{path.name}: tensor {name!r} is none of lmprobe's")
        del tensors[name]
    return tensors


def _check(raw: dict[str, Tensor], found: PromptTensors) -> None:
    """Move what fits from `raw` to `found`."""
    mask = raw.get(MASK)
    if mask is not None and (mask.dim() != 2 or mask.shape[0] != 1 or mask.dtype.is_floating_point):
        found.problems.append(f"attention_mask of shape {tuple(mask.shape)} is not that of one prompt")
        mask = None
    rows = None if mask is None else mask[0] != 0
    if rows is not None:
        found.n_tokens = int(rows.sum())
        found.left_padded = bool(found.n_tokens) and not bool(rows[0])
    for name, tensor in raw.items():
        problem = None
        if name.startswith("layer_"):
            if rows is None or not found.n_tokens:
                problem = "there is no mask to tell tokens from padding"
            elif tensor.dim() != 3 or tuple(tensor.shape[:2]) != (1, len(rows)) or not tensor.dtype.is_floating_point:
                problem = f"shape {tuple(tensor.shape)} does not fit a mask of {len(rows)} tokens"
            else:
                tensor = tensor[0, rows]
        elif name.startswith("pooled_") and (tensor.dim() != 2 or tensor.shape[0] != 1):
            problem = f"shape {tuple(tensor.shape)} is not that of one prompt"
        elif name == MASK and mask is None:
            continue
        if problem:
            found.problems.append(f"{name}: {problem}")
        else:
            found.tensors[name] = tensor
