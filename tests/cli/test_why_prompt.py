"""`lmstash why --prompt` and `--tokens`: a hit is what a look-up would serve, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.cli.main import main
from lmstash.identity.keys import Key

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LONG = " ".join(["w5"] * 100)
BLOCK, OTHER = " ".join(["w1"] * 64), " ".join(["w2"] * 64)


class Words:
    """A tokenizer: `w5` is 5."""

    def __call__(self, texts, **settings):
        return {"input_ids": [[int(word[1:]) for word in text.split()] for text in texts]}


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=120,
        max_position_embeddings=300,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(shape).eval()
    made.config.name_or_path = "org/one"
    return made


def ids(text: str) -> str:
    return ",".join(word[1:] for word in text.split())


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Ask `why` about the stash in `tmp_path`; returns the JSON answer with its exit code."""
    import json

    def run(*arguments: str) -> Any:
        code = main(["why", *arguments, "--dir", str(tmp_path), "--json"])
        answer = json.loads(capsys.readouterr().out)
        assert code == (0 if answer["hit"] else 1)
        return answer

    return run


def keep(folder: Path, model: Any, *calls: tuple[Any, ...], **settings: Any) -> None:
    with lmstash.open(folder, **settings) as stash:
        acts = stash.activations(model, Words())
        for prompts, layers, pool in calls:
            acts(prompts, layers, pool)


@pytest.mark.parametrize("private", [False, True])
def test_a_prompt_is_compared_past_its_first_200_characters(tmp_path, model, ask, private):
    keep(tmp_path, model, ([LONG + " w6"], [0, 1], "mean"), private=private)
    assert ask("--prompt", LONG + " w6", "--layer", "1", "--pool", "mean")["hit"] is True
    for other in (LONG, LONG + " w7"):
        answer = ask("--prompt", other, "--layer", "1", "--pool", "mean")
        assert (answer["hit"], [each["name"] for each in answer["differences"]]) == (False, ["prompt"])
        assert answer["differences"][0]["asked"] != answer["differences"][0]["kept"]


def test_an_entry_of_an_old_store_without_the_digest_of_its_text_is_no_hit_for_a_long_prompt(tmp_path, ask):
    key = Key({"layers": [1], "site": "block_out", "pool": "last"})
    meta = {"id": key.describe(), "model": "0123456789abcdef", "name": "tiny", "text": LONG[:200]}
    with lmstash.open(tmp_path) as stash:
        stash.store.put(key.digest, b"v", namespace="activations/0123456789abcdef", meta=meta)
    answer = ask("--prompt", LONG, "--layer", "1")
    assert answer["hit"] is None
    assert "first 200 characters" in answer["answer"]


def test_a_private_stash_tells_what_is_kept_and_which_part_differs(tmp_path, model, ask):
    keep(tmp_path, model, (["w1 w2 w3"], [0, 1], "mean"), (["w1 w2 w3"], [2], None), private=True)
    assert ask("--prompt", "w1 w2 w3", "--layer", "1", "--pool", "mean", "--model", "org/one")["hit"] is True
    assert ask("--prompt", "w1 w2 w3", "--layer", "2", "--pool", "none")["hit"] is True
    answer = ask("--prompt", "w1 w2 w3", "--layer", "3", "--pool", "mean")
    assert [(each["name"], each["kept"]) for each in answer["differences"]] == [("layer", "[0, 1]")]
    assert [each["name"] for each in ask("--prompt", "w4", "--layer", "1")["differences"]] == ["prompt"]


@pytest.mark.parametrize("private", [False, True])
def test_prompts_that_were_token_ids_are_asked_for_as_such(tmp_path, model, ask, private):
    keep(tmp_path, model, ([[9, 8, 7]], [0], "mean"), ([[5, 6]], [1], None), private=private)
    assert ask("--tokens", "9,8,7", "--layer", "0", "--pool", "mean")["hit"] is True
    assert ask("--tokens", "[5, 6]", "--layer", "1", "--pool", "none")["hit"] is True
    assert [each["name"] for each in ask("--tokens", "9,8", "--layer", "0")["differences"]] == ["tokens"]
    assert [each["name"] for each in ask("--tokens", "5,6", "--layer", "0", "--pool", "none")["differences"]] == [
        "layer"
    ]
    assert ask("--tokens", "5,6,7", "--layer", "1", "--pool", "none")["hit"] is False


def test_what_is_no_token_id_is_refused(tmp_path, model, capsys):
    keep(tmp_path, model, ([[9, 8, 7]], [0], "mean"))
    for wrong in ("a,b", "1,-2", ""):
        assert main(["why", "--tokens", wrong, "--dir", str(tmp_path)]) != 0
    assert main(["why", "--tokens", "1", "--prompt", "x", "--dir", str(tmp_path)]) == 2


@pytest.mark.parametrize("private", [False, True])
def test_raw_values_of_whole_blocks_are_a_hit_for_every_prompt_that_is_nothing_else(tmp_path, model, ask, private):
    keep(tmp_path, model, ([BLOCK + " " + OTHER], [0], None), private=private)
    raw = ("--layer", "0", "--pool", "none")
    for text, hit in (
        (BLOCK, True),
        (f"{BLOCK} {OTHER}", True),
        (f"{BLOCK} w2 w2", False),
        (OTHER, False),
        (f"{OTHER} {OTHER}", False),
    ):
        assert ask("--tokens", ids(text), *raw)["hit"] is hit, text
    assert ask("--tokens", ids(BLOCK), "--layer", "1", "--pool", "none")["hit"] is False


def test_of_a_text_that_begins_a_kept_one_it_is_said_that_it_cannot_be_told(tmp_path, model, ask):
    keep(tmp_path, model, ([f"{BLOCK} {OTHER}"], [0], None))
    answer = ask("--prompt", BLOCK, "--layer", "0", "--pool", "none")
    assert answer["hit"] is None
    assert "--tokens" in answer["answer"]
    assert ask("--prompt", BLOCK, "--layer", "0", "--pool", "mean")["hit"] is False  # pooled values are not shared


def test_in_a_private_stash_it_cannot_be_told_whether_a_text_is_a_block_of_a_longer_one(tmp_path, model, ask):
    keep(tmp_path, model, ([f"{BLOCK} {OTHER} w3"], [0], None), private=True)
    for text in (BLOCK, f"{BLOCK} {OTHER}", "w9"):
        answer = ask("--prompt", text, "--layer", "0", "--pool", "none")
        assert answer["hit"] is None, text
        assert "private" in answer["answer"]
        assert "--tokens" in answer["answer"]
    assert ask("--prompt", BLOCK, "--layer", "1", "--pool", "none")["hit"] is False
    assert ask("--prompt", BLOCK, "--layer", "0", "--pool", "mean")["hit"] is False


def test_in_a_private_stash_a_text_is_a_miss_where_no_whole_block_is_kept(tmp_path, model, ask):
    keep(tmp_path, model, (["w1 w2 w3"], [0], None), ([BLOCK], [0], "mean"), private=True)
    assert ask("--prompt", "w1 w2", "--layer", "0", "--pool", "none")["hit"] is False


def test_raw_values_of_a_text_in_blocks_are_a_hit_only_while_every_block_is_kept(tmp_path, model, ask):
    text = f"{BLOCK} {OTHER} w3"
    keep(tmp_path, model, ([text], [0, 3], None))
    raw = ("--layer", "3", "--pool", "none")
    assert ask("--prompt", text, *raw)["hit"] is True
    assert ask("--prompt", text, "--layer", "2", "--pool", "none")["hit"] is False
    with lmstash.open(tmp_path) as stash:
        second = [
            each for each in stash.store.entries() if each.meta.get("id", {}).get("components", {}).get("start") == 64
        ]
        assert stash.store.delete_many([each.key for each in second])
    assert not ask("--prompt", text, *raw)["hit"]
    assert ask("--tokens", ids(text), *raw)["hit"] is False


def test_the_same_last_tokens_after_others_are_no_hit(tmp_path, model, ask):
    keep(tmp_path, model, ([f"{BLOCK} w3 w4", f"{OTHER} w5"], [0, 3], None))
    raw = ("--layer", "3", "--pool", "none")
    assert ask("--tokens", ids(f"{BLOCK} w3 w4"), *raw)["hit"] is True
    assert ask("--tokens", ids(f"{OTHER} w3 w4"), *raw)["hit"] is False


def test_an_entry_that_refresh_emptied_is_neither_a_hit_nor_the_nearest(tmp_path, model, ask, capsys):
    keep(tmp_path, model, ([[1, 2, 3]], [0], "last"), ([[1, 2, 3]], [2], "last"))
    with lmstash.open(tmp_path) as stash:
        stash.activations(model)([[1, 2, 3]], [0, 2], "last", refresh=True)
        kept = {each.nbytes: each.key for each in stash.store.entries("activations/")}
        assert len(kept) == 2
    answer = ask("--tokens", "1,2,3", "--layer", "3")
    assert [(each["name"], each["kept"]) for each in answer["differences"]] == [("layer", "[0, 2]")]
    assert answer["nearest"] == kept[max(kept)].hex()
    assert main(["ls", "--kind", "activations", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("block_out (emptied) last") == 1
    with lmstash.open(tmp_path) as stash:
        stash.store.delete_many([kept[max(kept)]])
    assert ask("--tokens", "1,2,3")["hit"] is False


@pytest.mark.parametrize("pool", ["last", None])
def test_a_hit_by_name_says_of_which_weights(tmp_path, model, ask, capsys, pool):
    question = ("--tokens", ",".join(map(str, range(70))), "--layer", "1", "--model", "one")
    keep(tmp_path, model, ([[*range(70)]], [1], pool))
    before = lmstash.fingerprint(model).hex
    assert ask(*question)["models"] == [before[:16]]
    weight = model.lm_head.weight
    with torch.no_grad():
        weight[0, 0] += 1
    try:
        after = lmstash.fingerprint(model).hex
        answer = ask(*question)
        assert (answer["hit"], answer["models"]) == (True, [before[:16]])
        assert main(["why", *question, "--dir", str(tmp_path)]) == 0
        assert (
            f"{before[:16]}; another one misses: compare with lmstash.fingerprint(model).hex" in capsys.readouterr().out
        )
        answer = ask(*question[:-1], after)
        assert [(each["asked"], each["kept"]) for each in answer["differences"]] == [
            (after[:16], f"{before[:16]} (one)")
        ]
        keep(tmp_path, model, ([[*range(70)]], [1], pool))
        assert sorted(ask(*question)["models"]) == sorted([before[:16], after[:16]])
        assert "models" not in ask(*question[:-1], after)
    finally:
        with torch.no_grad():
            weight[0, 0] -= 1


@pytest.mark.parametrize(("option", "word"), [("--site", "block_out"), ("--pool", "mean"), ("--storage", "bfloat16")])
def test_a_word_that_there_is_not_is_code_2_and_those_there_are_are_listed(tmp_path, model, capsys, option, word):
    keep(tmp_path, model, ([[9, 8, 7]], [0], "mean"))
    assert main(["why", "--tokens", "9,8,7", option, "nonsense", "--dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "'nonsense'" in said
    assert word in said


class Letters:
    model_name, batch_size, layer_indices = "letters", 4, (1,)

    def extract_batch(self, prompts, layer_indices, remote=False):
        longest = max(map(len, prompts))
        mask = torch.tensor([[int(at < len(each)) for at in range(longest)] for each in prompts])
        return torch.ones(len(prompts), longest, 2 * len(layer_indices)), mask


@pytest.fixture
def imports(tmp_path: Path):
    """Take two prompts of an lmprobe cache over; a second call does it with `declare=`."""
    from safetensors.torch import save_file

    from lmstash.adapters.lmprobe import import_cache
    from lmstash.adapters.lmprobe.layout import hash16

    theirs = tmp_path / "theirs" / hash16("letters")
    theirs.mkdir(parents=True)
    (theirs / "_model_name.txt").write_text("letters")
    raw = torch.ones(1, 3, 2)
    tensors = {"layer_1": raw, "pooled_last_token_layer_0": torch.ones(1, 2), "perplexity": torch.ones(3)}
    save_file(
        tensors | {"attention_mask": torch.ones(1, 3, dtype=torch.int64)}, theirs / f"{hash16('abc')}.safetensors"
    )
    shifted = {"layer_1": raw.clone(), "attention_mask": torch.tensor([[0, 1, 1]])}
    save_file(shifted, theirs / f"{hash16('de')}.safetensors")

    def run(**settings):
        with lmstash.open(tmp_path) as stash:
            return import_cache(tmp_path / "theirs", stash, **settings)

    return run


def test_what_was_imported_is_a_miss_until_somebody_declares_it(imports, ask):
    imports()
    for raw in (("--layer", "1"), ("--layer", "1", "--pool", "none", "--model", "letters"), ()):
        answer = ask("--prompt", "abc", *raw)
        assert (answer["hit"], answer["differences"]) == (False, [])
        assert "unverified, not declared" in answer["answer"]
    imports(model="letters", declare=True)
    answer = ask("--prompt", "abc", "--layer", "1", "--site", "block_out", "--pool", "none", "--model", "letters")
    assert answer["hit"] is True
    assert "first extractor of that name" in answer["answer"]
    answer = ask("--prompt", "abc", "--layer", "2", "--pool", "none")
    assert [(each["name"], each["kept"]) for each in answer["differences"]] == [("layer", "1")]


def test_what_was_imported_is_a_hit_only_for_the_model_it_was_declared_for(tmp_path, imports, ask):
    from lmstash.adapters.lmprobe.imported import declaration
    from lmstash.adapters.lmprobe.layout import hash16

    imports(model=Letters(), declare=True)
    with lmstash.open(tmp_path) as stash:
        declared = declaration(stash.store, hash16("letters"))
    assert declared is not None
    assert ask("--prompt", "abc", "--layer", "1", "--model", declared.model.hex())["hit"] is True
    answer = ask("--prompt", "abc", "--layer", "1", "--model", "f" * 16)
    assert [each["name"] for each in answer["differences"]] == ["model"]


def test_imports_that_no_model_is_served_are_a_miss_though_declared(imports, ask):
    imports(model="letters", declare=True)
    answer = ask("--prompt", "abc", "--layer", "0", "--pool", "last")
    assert (answer["hit"], "load_imported" in answer["answer"]) == (False, True)
    answer = ask("--prompt", "de", "--layer", "1")
    assert (answer["hit"], "left padding" in answer["answer"]) == (False, True)
