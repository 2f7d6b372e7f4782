"""Models of the harness for tests: one that answers with what it is shown, and SmolLM2. Needs lmms-eval."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms


class Seeing(lmms):
    """Answers with a digest of all that it reads and sees."""

    def __init__(self, word: str = "", batch_size: int = 2, max_batch_size: Any = None, device: Any = None) -> None:
        super().__init__()
        self.word = word
        self.batch_size = int(batch_size)
        self.n_asked = 0
        _note(self)
        self.device = torch.device("cpu")

    def clean(self) -> None:
        """Hold on: the harness would drop what tests look at."""

    def see(self, request: Any) -> list[Any]:
        context, kwargs, doc_to_visual, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        return [context, sorted(kwargs.items(), key=repr), *[each.tobytes() for each in doc_to_visual(doc)]]

    def generate_until(self, requests: list[Any]) -> list[Any]:
        self.n_asked += len(requests)
        out = []
        for each in requests:
            digest = hashlib.sha256(repr(self.see(each)).encode()).hexdigest()[:8]
            out.append(GenerationResult(f"{self.word}{digest}", TokenCounts(output_tokens=8)))
        return out

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        self.n_asked += len(requests)
        return [(-float(len(each.args[0] + each.args[1])), False) for each in requests]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError


class Talking(Seeing):
    """As `Seeing`, given chat messages."""

    is_simple = False

    def see(self, request: Any) -> list[Any]:
        _, doc_to_messages, kwargs, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        shown = [part["url"].tobytes() if part["type"] == "image" else part for part in messages[0]["content"]]
        return [sorted(kwargs.items(), key=repr), *shown]


class SmolLM(lmms):
    """SmolLM2 on the CPU, as models of the harness are written."""

    def __init__(self, pretrained: str, batch_size: int = 4, max_batch_size: Any = None, device: Any = None) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(pretrained, padding_side="left")
        self.pretrained = pretrained
        self.batch_size = int(batch_size)
        self.log = os.environ.get("LOG_OF_COMPUTED", os.devnull)

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[Any]:
        out: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            part = requests[start : start + self.batch_size]
            n_new = part[0].args[1]["max_new_tokens"]
            ids = self.tokenizer([each.args[0] for each in part], return_tensors="pt", padding=True)
            with torch.no_grad():
                made = self._model.generate(**ids, max_new_tokens=n_new, do_sample=False)
            out += self.tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            with open(self.log, "a") as file:
                file.writelines(f"{each.doc_id}\n" for each in part)
        return out


def _note(model: Any) -> None:
    sys.lmms_made = model  # not a global of this module: that would be part of who the model is
