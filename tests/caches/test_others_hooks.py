"""`variant=` names hooks and forwards of others. That a token's values hang on what precedes it, it does not say.

People have hooks that steer answers and leave prompts alone, or the other way round, that act on the last token, or on
one position. No trial of a few tokens tells all of these from hooks that may be cut.
"""

import functools
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import lmstash
from lmstash.caches.logprobs.language_model import Reuse
from lmstash.errors import UnsupportedModelError

PROMPT = [*range(1, 60), *range(3, 20)]
LONGER = [*PROMPT, *range(7, 60)]
PUSH = torch.linspace(-3, 3, 32)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=512, **sizes, **ends)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def answers(module, args, out):
    return out + PUSH if out.shape[1] == 1 else out


def prompts(module, args, out):
    return out + PUSH if out.shape[1] > 1 else out


def last(module, args, out):
    return torch.cat([out[:, :-1], out[:, -1:] + PUSH], dim=1)


def position_40(module, args, out):
    return torch.cat([out[:, :40], out[:, 40:41] + PUSH, out[:, 41:]], dim=1) if out.shape[1] > 40 else out


def long_ones(module, args, out):
    return out + PUSH if out.shape[1] > 80 else out


@pytest.fixture(params=[answers, prompts, last, position_40, long_ones], ids=lambda hook: hook.__name__)
def hook(request):
    return request.param


@pytest.fixture(params=["hook", "forward"])
def build(request, hook):
    """A model with a hook, or with a forward on an instance that does the same."""

    def hooked():
        model = llama()
        block = model.model.layers[0]
        if request.param == "hook":
            block.register_forward_hook(hook)
        else:
            block.forward = lambda *args, **named: hook(block, args, type(block).forward(block, *args, **named))
        return model

    return hooked


def generated(generate, ids):
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    return generate(torch.tensor([ids]), output_logits=True, return_dict_in_generate=True, **options)


def plain(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def test_the_same_call_says_the_same_again(build):
    with lmstash.open("memory://", strict=True) as stash:
        kv = stash.kv(build(), variant="steered")
        for ids in (PROMPT, PROMPT, LONGER):
            got, wanted = generated(kv.generate, ids), generated(build().generate, ids)
            assert torch.equal(got.sequences, wanted.sequences)
            assert torch.equal(got.logits[0], wanted.logits[0])
            kv.flush()
        assert kv.stats.tokens_kept == kv.stats.tokens_reused == 0
        assert not list(stash.store.entries("kv/"))
        assert "model.layers.0 has" in kv.reason
        assert "module of your own" in kv.reason
        assert list(kv.stats.passed_on) == [kv.reason]
        assert kv.past(PROMPT) == (None, 0)
        assert kv.prefill(PROMPT) == 0


def test_log_probabilities_are_those_of_the_context_alone(build):
    asked = [LONGER, PROMPT, PROMPT[:1], PROMPT[:30], PROMPT[1:31], LONGER[:81], [*PROMPT, 7]]
    with lmstash.open("memory://", strict=True) as stash:
        logprobs = stash.logprobs(build(), variant="steered")
        for contexts in (asked[:1], asked):
            for ids, row in zip(contexts, logprobs.batch_next_token_logprobs(contexts), strict=True):
                assert torch.equal(row, plain(build(), ids)), len(ids)


def test_activations_are_those_of_the_prompt_alone(build):
    asked = [LONGER, PROMPT, PROMPT[:1], PROMPT[:30], LONGER[:81]]
    with lmstash.open("memory://", strict=True) as stash:
        acts = stash.activations(build(), variant="steered")
        for pool in (None, "last"):
            for prompts in (asked[:1], asked):
                for ids, got in zip(prompts, acts(prompts, 0, pool), strict=True):
                    with torch.no_grad():
                        wanted = build()(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
                    torch.testing.assert_close(got[0], wanted if pool is None else wanted[-1], rtol=1e-4, atol=1e-5)


def test_a_hook_is_noticed_at_the_next_call(hook):
    model = llama()
    with lmstash.open("memory://", strict=True) as stash:
        kv, logprobs = stash.kv(model, variant="steered"), stash.logprobs(model, variant="steered")
        for hooked in (False, True, False, True):
            handle = model.model.layers[0].register_forward_hook(hook) if hooked else None
            reused = kv.stats.tokens_reused
            for ids in (PROMPT, LONGER):
                oracle = llama()
                if hooked:
                    oracle.model.layers[0].register_forward_hook(hook)
                got, wanted = generated(kv.generate, ids), generated(oracle.generate, ids)
                kv.flush()
                assert torch.equal(got.sequences, wanted.sequences)
                row = logprobs.next_token_logprobs(ids)
                torch.testing.assert_close(row, plain(oracle, ids), rtol=1e-4, atol=1e-5)
            assert (kv.stats.tokens_reused > reused) == (not hooked)
            assert bool(kv.reason) == hooked
            assert (logprobs._engine.model.reuse is Reuse.NOTHING) == hooked
            if handle is not None:
                handle.remove()


def test_a_mode_around_the_call_is_no_less_than_a_hook():
    class Answers(TorchFunctionMode):
        """Doubles what passes of one token add up."""

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return out * 2 if func is nn.functional.silu and out.shape[1] == 1 else out

    model = llama()
    with lmstash.open("memory://", strict=True) as stash:
        kv = stash.kv(model, variant="doubled")
        with Answers():
            for _ in range(2):
                got, wanted = generated(kv.generate, PROMPT), generated(model.generate, PROMPT)
                assert torch.equal(got.sequences, wanted.sequences)
                kv.flush()
            assert "Answers is active" in kv.reason
        assert not kv.reason
        assert kv.stats.tokens_kept == 0


@pytest.mark.parametrize("kind", ["accelerate's", "of somebody's own", "nested", "a method put into one"])
def test_what_accelerate_puts_on_a_model_only_moves_tensors(kind):
    hooks = pytest.importorskip("accelerate.hooks")
    model = llama()
    devices = {"": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu"}
    hooks.attach_align_device_hook_on_blocks(model, execution_device=devices, offload=False)
    block = model.model.layers[1]
    if kind in ("of somebody's own", "nested"):
        hooks.add_hook_to_module(block, type("Mine", (hooks.ModelHook,), {})(), append=True)
    if kind == "nested":
        hooks.add_hook_to_module(block, hooks.AlignDevicesHook("cpu"), append=True)
    if kind == "a method put into one":
        block._hf_hook.post_forward = lambda module, output: output
    with lmstash.open("memory://", strict=True) as stash:
        kv, logprobs = stash.kv(model, variant="dispatched"), stash.logprobs(model, variant="dispatched")
        for _ in range(2):
            kv.generate(torch.tensor([PROMPT]), max_new_tokens=2, do_sample=False)
            kv.flush()
        assert (kv.stats.tokens_reused > 0) == (kind == "accelerate's")
        assert (logprobs._engine.model.reuse is Reuse.KV) == (kind == "accelerate's")


@pytest.mark.parametrize("place", ["_call_impl", "_compiled_call_impl", "all modules"])
def test_what_stands_around_forward_is_a_hook_by_another_name(place, monkeypatch):
    model = llama()
    if place == "all modules":
        theirs = nn.Module.__call__
        monkeypatch.setattr(nn.Module, "__call__", lambda self, *args, **named: theirs(self, *args, **named))
    else:
        block = model.model.layers[0]
        setattr(block, place, functools.partial(type(block)._call_impl, block))
    with lmstash.open("memory://", strict=True) as stash:
        kv, logprobs = stash.kv(model, variant="mine"), stash.logprobs(model, variant="mine")
        for _ in range(2):
            kv.generate(torch.tensor([PROMPT]), max_new_tokens=2, do_sample=False)
            kv.flush()
        assert ("was replaced" if place == "all modules" else place) in kv.reason
        assert kv.stats.tokens_kept == 0
        assert logprobs._engine.model.reuse is Reuse.NOTHING


def test_what_was_put_back_is_no_hook():
    model = llama()
    mlp = model.model.layers[0].mlp
    theirs, calls = mlp.forward, mlp._call_impl
    mlp.forward = lambda x: theirs(x) * 2
    mlp.forward, mlp._call_impl = theirs, calls
    with lmstash.open("memory://", strict=True) as stash:
        kv, logprobs = stash.kv(model), stash.logprobs(model)
        for _ in range(3):
            got, wanted = generated(kv.generate, PROMPT), generated(llama().generate, PROMPT)
            kv.flush()
            assert torch.equal(got.sequences, wanted.sequences)
        assert kv.stats.tokens_reused > 0
        assert logprobs._engine.model.reuse is Reuse.KV
        assert lmstash.fingerprint(model).hex == lmstash.fingerprint(llama()).hex


def compiled(model, how, **settings):
    settings = {"backend": "eager", **settings}
    if how == "forward":
        model.forward = torch.compile(model.forward, **settings)
    else:
        for each in [model] if how == "the model" else model.model.layers:
            each.compile(**settings)
    return model


@pytest.fixture
def dynamo():
    """What was compiled in a test is not taken for another one's."""
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["forward", "the model", "blocks"])
def test_what_torch_compiles_is_vouched_for_as_code_is(how, dynamo):
    model, oracle = compiled(llama(), how), llama()
    with lmstash.open("memory://", strict=True) as stash:
        if how != "forward":  # which is refused where nobody vouches
            assert "vouch for that: variant=" in stash.kv(model).reason
        kv, logprobs = stash.kv(model, variant="compiled"), stash.logprobs(model, variant="compiled")
        for ids in (PROMPT, PROMPT, PROMPT, LONGER):
            got, wanted = generated(kv.generate, ids), generated(oracle.generate, ids)
            kv.flush()
            assert torch.equal(got.sequences, wanted.sequences)
            torch.testing.assert_close(got.logits[0], wanted.logits[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(logprobs.next_token_logprobs(ids), plain(oracle, ids), rtol=1e-4, atol=1e-4)
        assert kv.reason == ""
        assert kv.stats.tokens_reused > 0
        assert logprobs._engine.model.reuse is Reuse.KV


@pytest.mark.parametrize("how", ["forward", "the model"])
def test_what_is_compiled_in_one_piece_is_not_broken_by_ours(how, dynamo):
    """Neither hooks nor layers of lmstash's lie in what is traced: Dynamo would refuse the pass."""
    model, oracle = compiled(llama(), how, fullgraph=True, dynamic=True), llama()
    with lmstash.open("memory://", strict=True) as stash:
        kv = stash.kv(model, variant="compiled")
        for ids in (PROMPT, PROMPT, PROMPT, LONGER):
            got, wanted = generated(kv.generate, ids), generated(oracle.generate, ids)
            kv.flush()
            assert torch.equal(got.sequences, wanted.sequences)
        assert kv.stats.tokens_reused > 0
        assert not kv.stats.passed_on
        cache, n_tokens = kv.past(LONGER)
        with torch.no_grad():
            out = model(torch.tensor([LONGER[n_tokens:]]), past_key_values=cache).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(out, plain(oracle, LONGER), rtol=1e-4, atol=1e-4)


def test_a_hook_that_was_compiled_in_is_gone_when_it_is_taken_off(dynamo):
    model, oracle = llama(), llama()
    handle = model.model.layers[0].register_forward_hook(last)
    compiled(model, "forward")
    assert not torch.equal(plain(model, PROMPT), plain(oracle, PROMPT))
    with lmstash.open("memory://", strict=True) as stash:
        kv = stash.kv(model, variant="compiled")
        assert "hook" in kv.reason
        handle.remove()
        for ids in (PROMPT, PROMPT, LONGER):
            got, wanted = generated(kv.generate, ids), generated(oracle.generate, ids)
            kv.flush()
            torch.testing.assert_close(got.logits[0], wanted.logits[0], rtol=1e-4, atol=1e-4)
        assert kv.stats.tokens_kept > 0


@pytest.mark.parametrize("how", ["forward", "the model", "blocks"])
def test_a_compiler_of_one_s_own_may_put_a_hook_in(how, dynamo):
    """It gets the operations of a pass, and may give back others; nobody is told to vouch for it, in vain."""
    model = compiled(llama(), how, backend=lambda graph, inputs: graph.forward)
    with lmstash.open("memory://", strict=True) as stash:
        reasons = [stash.kv(model, variant="compiled").reason]
        if how != "forward":
            reasons.append(stash.kv(model).reason)
        for reason in reasons:
            assert "what torch.compile makes" in reason
            assert "whatever variant= calls it" in reason
        assert stash.logprobs(model, variant="compiled")._engine.model.reuse is Reuse.NOTHING


def test_a_mock_is_no_hook_of_lmstash_s():
    """It has any attribute that it is asked for, also the mark of our own."""
    model = llama()
    model.model.layers[0].register_forward_hook(Mock(side_effect=lambda module, args, output: None))
    with pytest.raises(UnsupportedModelError, match="hook"):
        lmstash.fingerprint(model)


def test_a_module_of_one_s_own_is_vouched_for_as_before():
    class Steered(LlamaMLP):
        def forward(self, x):
            return super().forward(x) + PUSH

    model = llama()
    own = Steered(model.config)
    own.load_state_dict(model.model.layers[0].mlp.state_dict())
    model.model.layers[0].mlp = own.eval()
    with lmstash.open("memory://", strict=True) as stash:
        assert "the tokens before it only" in stash.kv(model).reason
        kv, logprobs = stash.kv(model, variant="steered"), stash.logprobs(model, variant="steered")
        for _ in range(2):
            kv.generate(torch.tensor([PROMPT]), max_new_tokens=2, do_sample=False)
            kv.flush()
        assert kv.stats.tokens_reused > 0
        assert logprobs._engine.model.reuse is Reuse.KV
