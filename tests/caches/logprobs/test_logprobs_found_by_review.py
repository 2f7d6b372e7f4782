"""Wrong rows and harm that a hostile review found: each stays a test."""

import asyncio
import gc
import os
import signal
import threading
import weakref

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

import lmstash
from lmstash.errors import UnsupportedModelError
from lmstash.prefix.spans import SpanKind
from lmstash.prefix.tree import PrefixTree


def tiny(kind="llama", **options):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": 120, "max_position_embeddings": 256, "initializer_range": 0.3}
    config = AutoConfig.for_model(kind, **{**shape, **options})
    return AutoModelForCausalLM.from_config(config).eval()


def plain(model, context):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([context])).logits[0, -1].float(), -1)


def worst(lp, model, contexts):
    rows = lp.batch_next_token_logprobs(contexts)
    return max(float((row - plain(model, each)).abs().max()) for row, each in zip(rows, contexts, strict=True))


def contexts(seed=0, n=8):
    draw = np.random.default_rng(seed)
    shared = draw.integers(10, 110, 20).tolist()
    return [shared[: 5 + number] + draw.integers(10, 110, number).tolist() for number in range(n)]


@pytest.mark.parametrize("kind", ["roberta", "camembert", "xlm-roberta"])
def test_models_that_count_positions_from_the_padding_token_on(kind):
    model = tiny(kind, is_decoder=True, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        for seed in range(3):
            assert worst(lp, model, contexts(seed)) < 1e-4


def test_what_is_no_number_in_one_context_spoils_no_other():
    model = tiny()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model, row_bytes=0, answer_bytes=0)
        draw = np.random.default_rng(0)
        for seed in range(25):
            asked = contexts(seed)
            for each in asked[::3]:
                each[int(draw.integers(len(each)))] = 5
            for row, each in zip(lp.batch_next_token_logprobs(asked), asked, strict=True):
                assert torch.allclose(row, plain(model, each), atol=1e-4, equal_nan=True), each


class Doubles(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return out * 2 if function is torch.nn.functional.linear else out


def inside(change, model):
    """Whether a change for the length of one call is seen: inside, after it, and by who comes later."""
    asked = contexts(1)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        right = lp.batch_next_token_logprobs(asked)
        lp.batch_next_token_logprobs(asked)  # the next look is a glance
        other = contexts(2)
        with change:
            for each in (asked, other):
                rows = lp.batch_next_token_logprobs(each)
                expected = torch.stack([plain(model, one) for one in each])
                assert torch.allclose(rows, expected, atol=1e-3)
        lp.flush()
        assert torch.equal(lp.batch_next_token_logprobs(asked), right)
        assert worst(lp, model, other) < 1e-3
        assert worst(stash.logprobs(model), model, other) < 1e-3


def test_under_a_function_mode_nothing_is_served_or_kept():
    model, asked = tiny(), contexts(1)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        right = lp.batch_next_token_logprobs(asked)
        with Doubles(), pytest.raises(UnsupportedModelError, match="Doubles is active"):
            lp.batch_next_token_logprobs(asked)
        assert torch.equal(lp.batch_next_token_logprobs(asked), right)


def test_a_class_that_is_patched_for_one_call_is_seen(monkeypatch):
    model = tiny()
    kind = type(model.model.layers[0].mlp)
    forward = kind.forward

    class Patch:
        def __enter__(self):
            kind.forward = lambda self, x: forward(self, x) * 3

        def __exit__(self, *error):
            kind.forward = forward

    inside(Patch(), model)


def test_activated_lora_is_refused():
    model = tiny()
    model.peft_config = {"default": type("Config", (), {"alora_invocation_tokens": [7], "is_prompt_learning": False})()}
    with lmstash.open("memory://") as stash, pytest.raises(UnsupportedModelError, match="activated LoRA"):
        stash.logprobs(model)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_thread_that_computes():
    model = tiny()
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        lp.next_token_logprobs([1, 2, 3])
        entered, leave = threading.Event(), threading.Event()

        def hold():
            with lp._lock:
                entered.set()
                leave.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            lp.next_token_logprobs([1, 2, 3])
            os._exit(0)
        leave.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0


def test_event_loops_that_are_over_go():
    model = tiny()
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        loops = []

        async def main():
            loops.append(weakref.ref(asyncio.get_running_loop()))
            await asyncio.gather(*[lp.next_token_logprobs_async([1, 2, each]) for each in (3, 4)])

        for _ in range(5):
            asyncio.run(main())
        gc.collect()
        assert sum(each() is not None for each in loops) <= 1


def test_tokens_may_be_integers_of_numpy_and_torch():
    with lmstash.open("memory://") as stash:
        start = stash.logprobs(tiny()).start([1, 2])
        for token in (np.int64(7), torch.tensor(7), np.uint32(7)):
            assert list(start.extend(token).ids) == [1, 2, 7]


def test_a_pin_that_a_split_moved_up_is_given_back_whole():
    tree = PrefixTree(span=SpanKind(token_bytes=1, capacity_bytes=100))
    handle = tree.start([1, 2, 3, 4])
    long = handle.extend([5, 6, 7, 8])
    long.put_slots(0, range(8))
    handle.pin()
    tree.start([1, 2, 3, 4, 9])
    handle.unpin()
    handle.release()
    long.release()
    tree.evict_span(0)
    assert tree.info().span_tokens == 0
