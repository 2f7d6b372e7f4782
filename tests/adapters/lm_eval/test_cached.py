"""The wrapper: what it asks its model, what it finds again, and what it never serves."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.model import LM

import lmstash
from lmstash.adapters.lm_eval import CachedLM
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash

from .conftest import Scripted, answers_of, echo, evaluate, generations, instance, tiny_model, write_tasks


def asked_again(
    stash: Stash, first: list[Any], second: list[Any], method: str = "generate_until", **options: Any
) -> int:
    """How many of the second requests a model computes after the first were answered."""
    CachedLM(Scripted(echo), stash, model="m", **options)._answer(method, first)
    lm = Scripted(echo)
    answers = CachedLM(lm, stash, model="m", **options)._answer(method, second)
    assert answers == [echo(method, each.args) for each in second]
    return len(lm.seen)


def test_it_is_an_lm_as_the_evaluator_wants_one(stash, tasks):
    lm = CachedLM(Scripted(echo), stash, model="m")
    assert isinstance(lm, LM)
    assert evaluate(lm, tasks, ["t_gen", "t_mc", "t_roll"])["results"]


def test_an_evaluation_is_answered_from_the_stash_the_second_time_and_equal(stash, tasks, hflm):
    names = ["t_gen", "t_mc", "t_roll"]
    plain = answers_of(evaluate(hflm(), tasks, names))
    first = CachedLM(hflm(), stash)
    assert answers_of(evaluate(first, tasks, names)) == plain
    assert first.counts.computed == first.counts.asked == 8 + 2 * 8 + 8
    second = CachedLM(hflm(), stash)
    again = answers_of(evaluate(second, tasks, names))
    assert again == plain
    assert [type(each) for each in again["t_mc"][0][0][0]] == [float, bool]
    assert (second.counts.hits, second.counts.computed) == (32, 0)


def test_answers_are_compressed_where_the_stash_says_so(tmp_path):
    requests = [instance("loglikelihood", f"a context {number}", " word") for number in range(1500)]
    with lmstash.open(tmp_path, compress=True) as stash:
        CachedLM(Scripted(echo), stash, model="m").loglikelihood(requests)
        assert list(stash.store.entries("dictionaries/"))
    with lmstash.open(tmp_path) as stash:
        lm = Scripted(echo)
        assert CachedLM(lm, stash, model="m").loglikelihood(requests) == [
            echo("loglikelihood", each.args) for each in requests
        ]
        assert not lm.seen


def test_another_model_never_gets_these_answers(stash, tasks, hflm):
    evaluate(CachedLM(hflm(0), stash), tasks, ["t_gen"])
    other = CachedLM(hflm(1), stash)
    evaluate(other, tasks, ["t_gen"])
    assert (other.counts.hits, other.counts.computed) == (0, 8)


def test_a_model_that_is_changed_in_place_never_gets_them_either(stash, hflm):
    lm = CachedLM(hflm(), stash)
    requests = [instance("loglikelihood", "a b", f" {word}") for word in "cdef"]
    before = lm.loglikelihood(requests)
    lm.lm.model.lm_head.weight.data.mul_(1.5)
    after = lm.loglikelihood(requests)
    assert lm.counts.hits == 0
    assert after != before


def test_what_a_model_answers_that_changes_meanwhile_is_taken_back(stash, tokenizer):
    from lm_eval.models.huggingface import HFLM

    class Learning(HFLM):
        def _model_call(self, inps: Any, **options: Any) -> Any:
            out = super()._model_call(inps, **options)
            self.model.lm_head.weight.data.mul_(1.5)
            return out

    inner = Learning(pretrained=tiny_model(), tokenizer=tokenizer, batch_size=2)
    lm = CachedLM(inner, stash)
    lm.loglikelihood([instance("loglikelihood", "a b", f" {word}") for word in "cdef"])
    assert not kept(stash)
    assert stash.stats.drops["model_changed"]


WRONG_HITS = {
    "generation argument": {"max_gen_toks": 5},
    "stop words": {"until": ["."]},
    "an argument of the backend": {"top_p": 0.5},
    "temperature": {"temperature": 0.5, "seed": 1},
}


@pytest.mark.parametrize("change", WRONG_HITS.values(), ids=WRONG_HITS)
def test_other_generation_arguments_are_another_request(stash, change):
    assert asked_again(stash, generations(3), generations(3, **change)) == 3


def test_a_prompt_that_differs_in_one_space_is_another_request(stash):
    first = [instance("loglikelihood", "a", " b"), instance("loglikelihood_rolling", "a b")]
    second = [instance("loglikelihood", "a ", "b"), instance("loglikelihood", "a b", "")]
    assert asked_again(stash, first[:1], second, "loglikelihood") == 2


def test_a_method_does_not_answer_for_another(stash):
    asked_again(stash, [instance("loglikelihood_rolling", "x")], [], "loglikelihood_rolling")
    assert asked_again(stash, [], [instance("loglikelihood", "x", "")], "loglikelihood") == 1


@pytest.mark.parametrize("options", [{"revision": "2"}, {"variant": "2"}])
def test_another_revision_is_another_model(stash, options):
    CachedLM(Scripted(echo), stash, model="m").generate_until(generations(2))
    lm = Scripted(echo)
    CachedLM(lm, stash, model="m", **options).generate_until(generations(2))
    assert len(lm.seen) == 2


def test_the_plain_attributes_of_a_declared_model_count_but_not_how_it_is_run(stash):
    def asks(**attributes: Any) -> int:
        lm = Scripted(echo)
        for name, value in attributes.items():
            setattr(lm, name, value)
        CachedLM(lm, stash, model="m").generate_until(generations(2))
        return len(lm.seen)

    assert asks(max_length=100, batch_size=1, api_key="one") == 2
    assert asks(max_length=100, batch_size=4, api_key="two", _rank=1) == 0
    for other in ({"max_length": 200}, {"_max_length": 100}, {"peft": "adapter"}, {"revision": "2"}):
        assert asks(**{"max_length": 100, **other}) == 2, other


def test_a_class_that_nobody_knows_is_not_cached_unless_it_is_declared(tmp_path, caplog):
    with lmstash.open(tmp_path / "s") as stash:
        for _ in range(2):
            lm = Scripted(echo)
            assert len(CachedLM(lm, stash).generate_until(generations(3))) == 3
            assert len(lm.seen) == 3
        assert stash.stats.misses["unsupported"] == 6
        assert sum("Declare which" in each.getMessage() for each in caplog.records) == 1


def test_imported_answers_that_cannot_be_used_are_said_to_be_so(tmp_path, caplog):
    with lmstash.open(tmp_path / "s") as stash:
        CachedLM(Scripted(echo), stash, imported="SmolLM2 of March").generate_until(generations(1))
    assert sum("give model= beside imported=" in each.getMessage() for each in caplog.records) == 1


def kept(stash: Stash) -> list[dict[str, Any]]:
    """What is said of each answer that is kept."""
    return [dict(each.meta or {}) for each in stash.store.entries() if each.namespace.startswith("responses/")]


NEEDLESS_MISSES: dict[str, dict[str, Any]] = {
    "order of arguments": {"order": ["max_gen_toks", "until", "temperature"]},
    "0 against 0.0": {"temperature": 0.0},
}


@pytest.mark.parametrize("change", NEEDLESS_MISSES.values(), ids=NEEDLESS_MISSES)
def test_what_makes_no_difference_is_no_miss(stash, change):
    first = generations(3, temperature=0)
    second = generations(3, temperature=change.get("temperature", 0))
    for each in second:
        options = each.args[1]
        each.arguments = (each.args[0], {name: options[name] for name in change.get("order", options)})
    assert asked_again(stash, first, second) == 0


def test_another_task_that_asks_the_same_computes_nothing(stash):
    first = generations(3)
    second = [instance("generate_until", *each.args, doc=7 + i, task="other") for i, each in enumerate(first)]
    assert asked_again(stash, first, second) == 0


def test_the_same_prompt_of_two_documents_is_computed_once(stash):
    assert asked_again(stash, [], [*generations(2), *generations(2)]) == 2


# --- repeats and sampling -----------------------------------------------------------------------------------------


def counted(**options: Any) -> Any:
    """A model whose every answer is another one."""
    numbers = iter(range(1000))
    return Scripted(lambda method, arguments: f"sample {next(numbers)}", **options)


def test_repeats_are_answers_of_their_own_and_come_back_as_such(stash):
    options = {"do_sample": True, "temperature": 0.7, "seed": 3}
    requests = [each for each in [instance("generate_until", "p", options, repeats=4)] for _ in range(4)]
    first = CachedLM(counted(), stash, model="m").generate_until(requests)
    assert len(set(first)) == 4
    lm = counted()
    assert CachedLM(lm, stash, model="m").generate_until(requests) == first
    assert not lm.seen


def test_more_repeats_than_before_are_all_drawn_anew(stash):
    one = instance("generate_until", "p", {"temperature": 1.0, "seed": 3}, repeats=4)
    first = CachedLM(counted(), stash, model="m").generate_until([one] * 2)
    again = CachedLM(counted(), stash, model="m").generate_until([one] * 4)  # by a generator that begins anew
    assert len(set(again)) == 4
    assert CachedLM(counted(), stash, model="m").generate_until([one] * 2) == first


def test_greedy_repeats_compute_only_the_new_ones(stash):
    one = instance("generate_until", "p", {"do_sample": False}, repeats=4)
    CachedLM(counted(), stash, model="m").generate_until([one] * 2)
    lm = counted()
    CachedLM(lm, stash, model="m").generate_until([one] * 4)
    assert len(lm.seen) == 2


@pytest.mark.parametrize("keep_sampled", [False, True], ids=["a seed", "no seed"])
def test_repeats_of_an_evaluation_that_was_killed_are_no_copies_of_each_other(stash, keep_sampled):
    options = {"temperature": 1.0} if keep_sampled else {"temperature": 1.0, "seed": 3}
    documents = [instance("generate_until", f"p{doc}", options, doc=doc, repeats=4) for doc in range(2)]
    requests = [each for each in documents for _ in range(4)]
    killed = counted(reports=True)
    say, asked = killed._say, itertools.count(1)

    def interrupted(method: str, arguments: tuple[Any, ...]) -> Any:
        if next(asked) > 6:
            raise KeyboardInterrupt
        return say(method, arguments)

    killed._say = interrupted
    with pytest.raises(KeyboardInterrupt):
        CachedLM(killed, stash, model="m", keep_sampled=keep_sampled).generate_until(requests)
    lm = counted(reports=True)
    said = CachedLM(lm, stash, model="m", keep_sampled=keep_sampled).generate_until(requests)
    assert len(lm.seen) == 4  # the document that was complete is kept
    assert [len(set(said[:4])), len(set(said[4:]))] == [4, 4]
    again = CachedLM(counted(reports=True), stash, model="m", keep_sampled=keep_sampled)
    assert again.generate_until(requests) == said
    assert again.counts.computed == 0


def test_samples_of_a_local_model_that_more_are_asked_of_are_no_copies(stash, hflm):
    import torch

    one = instance("generate_until", "p q", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}, repeats=3)
    for n_samples in (1, 2, 3):
        torch.manual_seed(1234)  # as the harness does whenever it starts
        said = CachedLM(hflm(batch_size=1), stash).generate_until([one] * n_samples)
        assert len(set(said)) == n_samples


def test_documents_with_one_text_are_drawn_together(stash):
    documents = [instance("generate_until", "p", {"temperature": 1.0, "seed": 3}, doc=doc) for doc in range(3)]
    CachedLM(counted(), stash, model="m").generate_until(documents[:1])
    lm = CachedLM(counted(), stash, model="m")
    said = lm.generate_until(documents)
    assert (len(set(said)), lm.counts.computed) == (3, 3)
    assert CachedLM(counted(), stash, model="m").generate_until(documents) == said


def test_samples_that_are_drawn_together_are_kept_only_if_each_of_them_is(stash):
    one = instance("generate_until", "p", {"temperature": 1.0, "seed": 3}, repeats=3)
    for _ in range(2):
        texts = iter(["a", "", "b"])
        lm = Scripted(lambda method, arguments, texts=texts: next(texts))
        assert CachedLM(lm, stash, model="m").generate_until([one] * 3) == ["a", "", "b"]


def test_samples_of_more_requests_than_are_looked_up_at_once_come_back(stash, monkeypatch):
    monkeypatch.setattr("lmstash.adapters.lm_eval.cached._AT_ONCE", 3)
    one = instance("generate_until", "p", {"temperature": 1.0, "seed": 3}, repeats=5)
    requests = [*generations(2), *[one] * 5, *generations(4)]
    first = CachedLM(counted(), stash, model="m").generate_until(requests)
    assert len(set(first)) == 9  # two greedy ones are asked twice
    lm = counted()
    assert CachedLM(lm, stash, model="m").generate_until(requests) == first
    assert not lm.seen


def test_refreshed_samples_replace_all_that_were_drawn_together(stash):
    one = instance("generate_until", "p", {"temperature": 1.0, "seed": 3}, repeats=2)
    CachedLM(counted(), stash, model="m").generate_until([one] * 2)
    numbers = itertools.count(1)
    other = Scripted(lambda method, arguments: f"other {next(numbers)}")
    fresh = CachedLM(other, stash, model="m", refresh=True).generate_until([one] * 2)
    assert CachedLM(counted(), stash, model="m").generate_until([one] * 2) == fresh


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"do_sample": True}, {"temperature": "0.7"}])
def test_sampling_of_which_nobody_knows_the_seed_is_kept_only_when_asked(stash, options):
    assert asked_again(stash, generations(2, **options), generations(2, **options)) == 2
    assert stash.stats.misses["sampled"]
    assert asked_again(stash, generations(2, **options), generations(2, **options), keep_sampled=True) == 0


def test_two_documents_with_one_text_do_not_share_a_sample(stash):
    options = {"temperature": 1.0, "seed": 3}
    requests = [instance("generate_until", "p", options, doc=number) for number in range(3)]
    assert len(set(CachedLM(counted(), stash, model="m").generate_until(requests))) == 3


def test_samples_of_a_local_model_belong_to_the_seed_that_torch_was_given(stash, hflm):
    import torch

    requests = generations(3, do_sample=True, temperature=1.0)
    first, other, again = (CachedLM(hflm(), stash) for _ in range(3))
    torch.manual_seed(1)
    said = first.generate_until(requests)
    torch.manual_seed(2)
    other.generate_until(requests)
    assert other.counts.hits == 0
    torch.manual_seed(1)
    assert again.generate_until(requests) == said
    assert again.counts.computed == 0


# --- media --------------------------------------------------------------------------------------------------------


def picture(colour: tuple[int, int, int]) -> Any:
    return pytest.importorskip("PIL.Image").new("RGB", (8, 8), colour)


def test_images_count_by_content(stash):
    def request(colour: tuple[int, int, int]) -> Any:
        return instance("generate_until", "<image> what?", {"until": []}, {"visual": [picture(colour)]})

    assert asked_again(stash, [request((1, 2, 3))], [request((1, 2, 3))]) == 0
    assert asked_again(stash, [request((1, 2, 3))], [request((1, 2, 4))]) == 1


def test_audio_counts_by_content(stash):
    def request(value: float) -> Any:
        audio = {"array": np.full(16, value, np.float32), "sampling_rate": 16000}
        return instance("generate_until", "listen", {"until": []}, {"audio": [audio]})

    assert asked_again(stash, [request(0.5)], [request(0.5)]) == 0
    assert asked_again(stash, [request(0.5)], [request(0.25)]) == 1


def test_chats_are_no_texts(stash):
    from lm_eval.models.api_models import JsonChatStr

    chat = '[{"role": "user", "content": "hi"}]'
    first = [instance("generate_until", JsonChatStr(chat), {"until": []})]
    assert asked_again(stash, first, [instance("generate_until", JsonChatStr(chat), {"until": []})]) == 0
    assert asked_again(stash, first, [instance("generate_until", chat, {"until": []})]) == 1


# --- failures -----------------------------------------------------------------------------------------------------


def test_answers_stay_in_their_places_where_one_is_missing_and_none_is_kept(stash):
    def say(method: str, arguments: tuple[Any, ...]) -> Any:
        return None if arguments[0] == "prompt 1" else echo(method, arguments)

    for n_seen in (3, 1):
        lm = Scripted(say)
        answers = CachedLM(lm, stash, model="m").generate_until(generations(3))
        assert [each is None for each in answers] == [False, True, False]
        assert len(lm.seen) == n_seen


@pytest.mark.parametrize("nothing", ["", None, math.nan])
def test_nothing_is_not_kept_of_a_server(stash, nothing):
    for _ in range(2):
        lm = Scripted(lambda method, arguments: nothing)
        CachedLM(lm, stash, model="m").generate_until(generations(1))
        assert len(lm.seen) == 1


def test_empty_texts_are_kept_where_they_are_asked_for(stash):
    for n_seen in (1, 0):
        lm = Scripted(lambda method, arguments: "")
        assert CachedLM(lm, stash, model="m", keep_empty=True).generate_until(generations(1)) == [""]
        assert len(lm.seen) == n_seen


def test_what_the_harness_writes_for_an_answer_that_failed_is_not_kept(stash, monkeypatch):
    from lm_eval.models import api_models

    monkeypatch.setattr(api_models, "LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER", "[none]")
    for _ in range(2):
        lm = Scripted(lambda method, arguments: "[none]")
        CachedLM(lm, stash, model="m", keep_empty=True).generate_until(generations(1))
        assert len(lm.seen) == 1


def test_numbers_of_numpy_are_kept_as_python_has_them(stash):
    lm = Scripted(lambda method, arguments: (np.float64(-1.5), np.bool_(True)))
    request = [instance("loglikelihood", "a", "b")]
    CachedLM(lm, stash, model="m").loglikelihood(request)
    (answer,) = CachedLM(Scripted(echo), stash, model="m").loglikelihood(request)
    assert answer == (-1.5, True)
    assert [type(each) for each in answer] == [float, bool]


def test_minus_infinity_comes_back(stash):
    lm = Scripted(lambda method, arguments: (-math.inf, False))
    CachedLM(lm, stash, model="m").loglikelihood([instance("loglikelihood", "a", "b")])
    lm = Scripted(echo)
    assert CachedLM(lm, stash, model="m").loglikelihood([instance("loglikelihood", "a", "b")]) == [(-math.inf, False)]
    assert not lm.seen


def test_a_model_that_returns_too_few_answers_is_told(stash):
    lm = Scripted(echo)
    lm.generate_until = lambda requests: []
    with pytest.raises(ValueError, match="got 1 requests and returned 0"):
        CachedLM(lm, stash, model="m").generate_until(generations(1))


def test_no_requests_are_no_call(stash):
    lm = Scripted(echo)
    assert CachedLM(lm, stash, model="m").generate_until([]) == []
    assert not lm.seen


def test_arguments_that_the_backend_changes_are_kept_as_they_were_asked(stash):
    def say(method: str, arguments: tuple[Any, ...]) -> str:
        arguments[1].pop("until")
        return "said"

    CachedLM(Scripted(say), stash, model="m").generate_until(generations(2))
    lm = Scripted(say)
    assert CachedLM(lm, stash, model="m").generate_until(generations(2)) == ["said", "said"]
    assert not lm.seen


def test_requests_that_cannot_be_named_are_asked_each_time(tmp_path):
    with lmstash.open(tmp_path / "s") as stash:
        requests = [instance("generate_until", "p", {"until": [], "processor": object()})]
        for _ in range(2):
            lm = Scripted(lambda method, arguments: "x")
            assert CachedLM(lm, stash, model="m").generate_until(requests) == ["x"]
            assert len(lm.seen) == 1


def test_a_stash_that_cannot_be_used_does_not_stop_an_evaluation(tmp_path):
    place = tmp_path / "file"
    place.write_text("no folder")
    with lmstash.open(place) as stash:
        lm = Scripted(echo)
        assert len(CachedLM(lm, stash, model="m").generate_until(generations(2))) == 2


# --- the rest is the inner model's --------------------------------------------------------------------------------


def test_everything_else_is_the_inner_models(stash):
    lm = Scripted(echo)
    lm._rank, lm._world_size = 1, 4
    lm.MULTIMODAL = True
    lm.get_model_info = lambda: {"model_sha": "x"}
    lm.apply_chat_template = lambda chat_history, add_generation_prompt=True: f"{chat_history} {add_generation_prompt}"
    cached = CachedLM(lm, stash, model="m")
    assert (cached.rank, cached.world_size, cached.MULTIMODAL) == (1, 4, True)
    assert cached.get_model_info() == {"model_sha": "x"}
    assert cached.apply_chat_template([], False) == "[] False"
    assert not hasattr(cached, "batch_sizes")
    with pytest.raises(NotImplementedError):
        _ = cached.tokenizer_name


def test_another_hook_is_told_what_the_model_reports(stash):
    told: list[Any] = []

    class Hook:
        def add_partial(self, *arguments: Any) -> None:
            told.append(arguments)

    cached = CachedLM(Scripted(echo, reports=True), stash, model="m")
    cached.set_cache_hook(Hook())
    cached.generate_until(generations(2))
    assert len(told) == 2


# --- whole evaluations --------------------------------------------------------------------------------------------


def run(stash: Stash, folder: Path, lm: Any, names: tuple[str, ...] = ("t_gen", "t_mc"), **options: Any) -> CachedLM:
    cached = CachedLM(lm, stash)
    evaluate(cached, folder, list(names), **options)
    return cached


def test_another_metric_computes_nothing(stash, tmp_path, hflm):
    run(stash, write_tasks(tmp_path / "a"), hflm())
    again = run(stash, write_tasks(tmp_path / "b", metric="exact_match"), hflm())
    other = run(stash, write_tasks(tmp_path / "c", metric="bleu"), hflm())
    assert (again.counts.computed, other.counts.computed) == (0, 0)


CHANGES: dict[str, dict[str, Any]] = {
    "template of the prompt": {"prompt": "Question: {{q}}\nA:"},
    "generation arguments": {"max_gen_toks": 3},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_edit_of_the_task_computes_what_it_changes(stash, tmp_path, hflm, change):
    run(stash, write_tasks(tmp_path / "a"), hflm(), ("t_gen",))
    assert run(stash, write_tasks(tmp_path / "b", **change), hflm(), ("t_gen",)).counts.hits == 0


def test_an_edit_of_the_dataset_computes_the_documents_that_changed(stash, tmp_path, hflm):
    run(stash, write_tasks(tmp_path / "a"), hflm(), ("t_gen",))
    folder = write_tasks(tmp_path / "b")
    data = folder / "data.jsonl"
    data.write_text(data.read_text().replace("What is 3 plus", "How much is 3 plus"))
    assert run(stash, folder, hflm(), ("t_gen",)).counts.computed == 1


def test_chat_template_system_prompt_and_few_shot_seed_count(stash, tmp_path, hflm):
    folder = write_tasks(tmp_path / "a")
    for name in ("t_gen",):
        file = folder / f"{name}.yaml"
        file.write_text(
            file.read_text().replace('"test_split": "test"', '"test_split": "test", "fewshot_split": "test"')
        )
    ways: list[dict[str, Any]] = [
        {},
        {"apply_chat_template": True},
        {"apply_chat_template": True, "system_instruction": "Be brief."},
        {"system_instruction": "Be brief."},
        {"num_fewshot": 2, "fewshot_random_seed": 1},
        {"num_fewshot": 2, "fewshot_random_seed": 2},
    ]
    for way in ways:
        assert run(stash, folder, hflm(), ("t_gen",), **way).counts.hits == 0, way
    for way in ways:
        assert run(stash, folder, hflm(), ("t_gen",), **way).counts.computed == 0, way


def test_the_documents_that_are_asked_for_are_those_that_are_answered(stash, tasks, hflm):
    run(stash, tasks, hflm(), ("t_gen",))
    some = CachedLM(hflm(), stash)
    results = evaluate(some, tasks, ["t_gen"], samples={"t_gen": [5, 6]})
    assert [each["doc_id"] for each in results["samples"]["t_gen"]] == [5, 6]
    assert (some.counts.asked, some.counts.computed) == (2, 0)


def test_wrong_options_are_told(stash):
    with pytest.raises(InvalidArgumentError):
        CachedLM(Scripted(echo), stash, model="")


def test_tags_say_what_was_asked(stash, tasks):
    evaluate(CachedLM(Scripted(echo), stash, model="m"), tasks, ["t_gen"])
    found = kept(stash)
    assert sorted(each["doc"] for each in found) == list(range(8))
    assert {each["task"] for each in found} == {"t_gen"}


def test_models_of_one_shape_are_not_one_model():
    one, other = tiny_model(0), tiny_model(1)
    assert lmstash.fingerprint(one) != lmstash.fingerprint(other)


def test_why_nothing_is_cached_is_told_for_each_reason(stash, tokenizer, caplog):
    from lm_eval.models.huggingface import HFLM

    class Mine(HFLM):
        def tok_encode(self, string: str, **options: Any) -> Any:
            return super().tok_encode(f"{vars(self)}", **options)

    for name in ("one", "other", "one"):
        lm = Mine(pretrained=tiny_model(), tokenizer=tokenizer)
        vars(lm)[name] = (each for each in ())  # which nobody can take apart
        CachedLM(lm, stash)
    told = [each.getMessage() for each in caplog.records if "nothing is cached" in each.getMessage()]
    assert [each.partition("evaluation: ")[2].split()[0] for each in told] == ["one", "other"]
