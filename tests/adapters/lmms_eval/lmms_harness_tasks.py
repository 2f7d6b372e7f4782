"""Tasks of the harness for tests, written into a folder: local JSON data, functions in a file beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

UTILS = """
from PIL import Image

def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return "Q: " + doc["question"] + "{SUFFIX}"

def doc_to_visual(doc):
    return [Image.new("RGB", (4, 4), ({COLOUR}, 0, 0))]

def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    text = {{"type": "text", "text": doc_to_text(doc)}}
    return [{{"role": "user", "content": [{{"type": "image", "url": doc_to_visual(doc)[0]}}, text]}}]

def doc_to_step(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if previous_output is None:
        return doc_to_text(doc)
    info = {{"state": {{}}, "tool_calls": round_idx}}
    context = f"Round {{round_idx}}{SUFFIX} after {{previous_output[-1]}}"
    return doc_to_visual(doc), context, round_idx == 3, list(previous_output), info

def process_results(doc, results):
    {SCORING}
    return {{"acc": 1.0, "length": float(len(results[0]))}}
"""


def write_task(
    folder: Path,
    *,
    n_docs: int = 12,
    name: str = "mini",
    suffix: str = "",
    colour: int = 1,
    answer: str = "A",
    question: str = "",
    scoring: str = "pass",
    metrics: tuple[str, ...] = ("acc",),
    kwargs: dict[str, Any] | None = None,
    chat: bool = False,
    agentic: bool = False,
    lines: tuple[str, ...] = (),
) -> Path:
    """Write a task; returns the folder to include."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    rows = [{"question": f"{question}{k} + 1", "answer": f"{answer}{k}"} for k in range(n_docs)]
    text = "".join(json.dumps(each) + "\n" for each in rows)
    if not data.exists() or data.read_text() != text:
        data.write_text(text)  # `datasets` goes by the time of a file
    utils = f"{name}_utils"
    body = UTILS.format(SUFFIX=suffix, COLOUR=colour, SCORING=scoring)
    (folder / f"{utils}.py").write_text(body)
    shown = [f"doc_to_messages: !function {utils}.doc_to_messages"] if chat else []
    (folder / f"{name}.yaml").write_text(
        "\n".join(
            [
                f"task: {name}",
                "dataset_path: json",
                "dataset_kwargs:",
                "  data_files:",
                f"    test: {data}",
                "test_split: test",
                f"output_type: generate_until{'_agentic' if agentic else ''}",
                f"doc_to_text: !function {utils}.{'doc_to_step' if agentic else 'doc_to_text'}",
                f"doc_to_visual: !function {utils}.doc_to_visual",
                *shown,
                'doc_to_target: "answer"',
                f"generation_kwargs: {json.dumps(kwargs or {'max_new_tokens': 8, 'until': ['#']})}",
                f"process_results: !function {utils}.process_results",
                "metric_list:",
                *[f"  - {{metric: {each}, aggregation: mean, higher_is_better: true}}" for each in metrics],
                *lines,
            ]
        )
    )
    return folder
