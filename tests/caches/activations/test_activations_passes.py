"""A model is after a pass what it was before, whatever its forward leaves on it; what others put there stays."""

import threading

import pytest
import torch
import transformers

import lmstash
from lmstash.caches.activations import Activations
from lmstash.caches.activations.passes import Passes, passes_over
from lmstash.store.memory import MemoryStore

SHORT = [[5, 6, 7], list(range(3, 23))]
LONG = [[9] * 30 + list(range(40)), list(range(60)) + [4] * 40]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90}


def longrope():
    """Its embedding of positions is written to in batches beyond 32 tokens, and back again."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope |= {"factor": 4.0, "original_max_position_embeddings": 32}
    options = {"max_position_embeddings": 128, "original_max_position_embeddings": 32, "rope_parameters": rope}
    torch.manual_seed(0)
    return transformers.Phi3Model(transformers.Phi3Config(**SMALL, **options, pad_token_id=0)).eval()


def dynamic():
    """Its embedding of positions is replaced in batches beyond 32 tokens, and shorter ones get the longest seen."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    options = {"max_position_embeddings": 32, "rope_parameters": rope}
    torch.manual_seed(0)
    return transformers.LlamaModel(transformers.LlamaConfig(**SMALL, **options)).eval()


def router():
    """Its routers remember the dtype that they were given."""
    sizes = {"d_model": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64}
    config = transformers.SwitchTransformersConfig(vocab_size=90, num_experts=4, num_sparse_encoder_layers=1, **sizes)
    torch.manual_seed(0)
    return transformers.SwitchTransformersModel(config).eval().get_encoder()


def bigbird():
    """Its attention modules are exchanged for good by a batch of less than 176 tokens."""
    config = transformers.BigBirdConfig(**SMALL, max_position_embeddings=512, block_size=16)
    torch.manual_seed(0)
    return transformers.BigBirdModel(config).eval()


def tiny():
    torch.manual_seed(0)
    return transformers.LlamaModel(transformers.LlamaConfig(**SMALL)).eval()


@pytest.mark.parametrize("pool", ["mean", None])
@pytest.mark.parametrize("build", [longrope, dynamic, router, bigbird])
def test_what_the_first_call_of_a_process_computes_is_served_to_every_other(tmp_path, build, pool):
    prompts = SHORT if build is dynamic else [*SHORT, *LONG]
    with lmstash.open(tmp_path, strict=True) as stash:
        first = stash.activations(build())
        cold = first(prompts, [0, 1], pool)
        name = first.fingerprint
        assert not first.missing(prompts, [0, 1], pool)
    with lmstash.open(tmp_path, strict=True) as stash:  # as another process: a model that was never run
        again = stash.activations(build())
        warm = again(prompts, [0, 1], pool, on_miss="error")
        assert again.fingerprint == first.fingerprint == name
    assert all(torch.equal(a, b) for a, b in zip(cold, warm, strict=True))


def test_a_long_prompt_after_short_ones_gets_the_values_of_a_fresh_model():
    long = (list(range(3, 90)) * 6)[:400]
    model = bigbird()
    acts = Activations(MemoryStore(), model)
    acts([[5, 6, 7]], 1, "mean")
    assert model.attention_type == "block_sparse"
    with torch.no_grad():
        fresh = bigbird()(torch.tensor([long])).last_hidden_state[0]
    assert fresh.shape[0] == 400
    torch.testing.assert_close(acts([long], 0, None, site="final")[0][0], fresh, rtol=1e-4, atol=1e-5)


def test_buffers_that_were_written_to_hold_what_they_held():
    model = longrope()
    before = model.rotary_emb.inv_freq.clone()
    Activations(MemoryStore(), model)([LONG[0]], 1)
    assert torch.equal(model.rotary_emb.inv_freq, before)
    assert not hasattr(model.rotary_emb, "long_inv_freq")
    with torch.no_grad():
        model(torch.tensor([LONG[0]]))
    assert not torch.equal(model.rotary_emb.inv_freq, before)  # else nothing was tried above


def run(passes, model, once, again=lambda: None, *, may_undo=True):
    return passes.run(model, model, once, again=again, may_undo=lambda: may_undo)


def leave(model, value=2.0):
    model.norm.left = [value]


def test_an_edit_that_the_forward_does_not_make_again_stays():
    passes, model = Passes(), tiny()
    run(passes, model, lambda: leave(model))
    assert model.norm.left == [2.0]


def test_an_edit_that_the_forward_does_not_make_again_stays_beside_one_that_it_does():
    passes, model = Passes(), tiny()

    def edit():
        leave(model)
        model.norm.variance_epsilon = 0.5

    run(passes, model, edit, lambda: leave(model))
    assert not hasattr(model.norm, "left")
    assert model.norm.variance_epsilon == 0.5


def test_an_edit_while_it_cannot_be_told_whose_it_is_stays():
    def refuse():
        raise ValueError("once is enough")

    passes, model = Passes(), tiny()
    run(passes, model, lambda: leave(model), refuse)
    assert model.norm.left == [2.0]


def test_what_hooks_of_others_leave_stays():
    model, calls = tiny(), []

    def note(module, args, output):
        calls.append(module)
        module.calls = getattr(module, "calls", 0) + 1

    model.norm.register_forward_hook(note)
    Activations(MemoryStore(), model, variant="counted")([[5, 6, 7]], 0, site="final")
    assert model.norm.calls == len(calls) > 0


def test_what_an_edit_during_a_pass_gave_is_not_kept():
    """Once, as another thread would: nothing but the attribute tells."""
    model, edits = tiny(), [0.5]

    def edit(module, args, output):
        if edits:
            model.norm.variance_epsilon = edits.pop()

    edit._lmstash = True  # so that it is no hook of others
    model.layers[0].register_forward_hook(edit)
    store = MemoryStore()
    Activations(store, model)([[5, 6, 7]], 1)
    assert model.norm.variance_epsilon == 0.5
    assert not list(store.entries("activations/"))


def test_after_an_error_what_is_known_is_put_back():
    def fail():
        leave(model)
        raise ValueError("no room")

    passes, model = Passes(), tiny()
    run(passes, model, lambda: leave(model), lambda: leave(model))
    with pytest.raises(ValueError, match="no room"):
        run(passes, model, fail)
    assert not hasattr(model.norm, "left")


def in_a_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_what_passes_leave_that_ran_at_once_stays():
    """A pass that began from what another one left computed something else: the model must count as changed."""
    passes, model = Passes(), tiny()
    run(passes, model, lambda: None)  # the first one runs alone

    def outer():
        leave(model)
        in_a_thread(lambda: run(passes, model, lambda: None)).join()

    run(passes, model, outer, lambda: leave(model))
    assert model.norm.left == [2.0]


def test_what_is_left_while_the_program_runs_the_model_itself_stays():
    passes, model = Passes(), tiny()
    run(passes, model, lambda: leave(model), lambda: leave(model))

    def outer():
        leave(model)
        in_a_thread(lambda: model(torch.tensor([[1, 2]]))).join()

    run(passes, model, outer)
    assert model.norm.left == [2.0]


@pytest.mark.parametrize("known", [False, True], ids=["not run yet", "known to leave something"])
def test_a_model_that_may_leave_something_runs_in_one_thread_at_a_time(known):
    passes, model = Passes(), tiny()
    if known:
        run(passes, model, lambda: leave(model), lambda: leave(model))
    began, ran, threads = threading.Event(), threading.Event(), []

    def other():
        began.set()
        run(passes, model, ran.set)

    def outer():
        threads.append(in_a_thread(other))
        assert began.wait(10)
        return ran.wait(0.2)

    assert run(passes, model, outer) is False
    threads[0].join(10)
    assert ran.is_set()


def test_a_model_that_left_nothing_runs_in_several_threads_at_once():
    passes, model, ran = Passes(), tiny(), threading.Event()
    run(passes, model, lambda: None)

    def outer():
        in_a_thread(lambda: run(passes, model, ran.set))
        return ran.wait(10)

    assert run(passes, model, outer) is True


def test_a_model_is_not_looked_at_while_a_pass_has_left_something_on_it():
    """It would go by a name that is another's, under which nothing of it may be kept."""
    model = bigbird()
    acts = Activations(MemoryStore(), model)
    acts([[5, 6, 7]], 1)
    name, began, looked, threads = acts.fingerprint, threading.Event(), threading.Event(), []

    def look():
        began.set()
        acts.missing([[5, 6, 7]], 1)
        looked.set()

    def within():
        model.attention_type = "original_full"
        threads.append(in_a_thread(look))
        assert began.wait(10)
        return looked.wait(0.2)

    assert passes_over(model).run(model, model, within, again=lambda: None, may_undo=lambda: True) is False
    threads[0].join(10)
    assert looked.is_set()
    assert acts.fingerprint == name


def test_a_pass_within_a_pass_waits_for_nobody():
    passes, model = Passes(), tiny()
    run(passes, model, lambda: leave(model), lambda: leave(model))
    assert run(passes, model, lambda: run(passes, model, lambda: 7)) == 7


def test_all_sources_of_a_model_share_its_passes():
    model = tiny()
    assert passes_over(model) is not passes_over(tiny())
    held = passes_over(model)
    assert passes_over(model) is held
