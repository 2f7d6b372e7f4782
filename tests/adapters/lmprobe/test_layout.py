"""What lmprobe wrote is read with its shape checked; what does not fit is reported and left out."""

from pathlib import Path

import pytest
import torch

from lmstash.adapters.lmprobe.layout import hash16, load_prompt, read_layout
from lmstash.errors import StoreUnavailableError


def mask(*bits: int) -> torch.Tensor:
    return torch.tensor([bits])


def only_prompt(base: Path):
    [model] = read_layout(base).models
    [prompt] = model.prompts
    return prompt


def test_a_v2_prompt_is_read_with_its_sidecars_and_cut_to_its_real_tokens(folder):
    layer = torch.randn(1, 4, 8)
    folder.add("m/a", "hello", {"layer_3": layer, "attention_mask": mask(1, 1, 1, 0)})
    folder.add("m/a", "hello", {"logits": torch.randn(1, 1, 9)}, suffix=".logits")
    folder.add("m/a", "hello", {"perplexity": torch.randn(3)}, suffix=".perplexity")
    prompt = only_prompt(folder.base)
    assert (prompt.prompt_hash, prompt.text) == (hash16("hello"), "hello")
    found = load_prompt(prompt)
    assert found.problems == []
    assert (found.n_tokens, found.left_padded) == (3, False)
    assert torch.equal(found.tensors["layer_3"], layer[0, :3])
    assert {"logits", "perplexity", "attention_mask"} < set(found.tensors)


def test_left_padding_is_cut_and_remembered(folder):
    layer = torch.randn(1, 4, 8)
    folder.add("m", "p", {"layer_0": layer, "attention_mask": mask(0, 0, 1, 1)})
    found = load_prompt(only_prompt(folder.base))
    assert found.left_padded
    assert torch.equal(found.tensors["layer_0"], layer[0, 2:])


def test_a_v1_directory_is_read_without_unpickling(folder):
    layer, pooled = torch.randn(1, 3, 8), torch.randn(1, 8)
    folder.add_old(
        "m",
        "p",
        {"layer_5": layer, "attention_mask": mask(1, 1, 1), "pooled_mean/layer_5": pooled, "perplexity": torch.ones(3)},
    )
    found = load_prompt(only_prompt(folder.base))
    assert found.problems == []
    assert torch.equal(found.tensors["layer_5"], layer[0])
    assert torch.equal(found.tensors["pooled_mean_layer_5"], pooled)
    assert "perplexity" in found.tensors


def test_v1_and_v2_of_one_prompt_are_joined_and_v2_wins(folder):
    folder.add("m", "p", {"layer_0": torch.ones(1, 2, 4), "attention_mask": mask(1, 1)})
    folder.add_old("m", "p", {"layer_0": torch.zeros(1, 2, 4), "perplexity": torch.ones(3)})
    found = load_prompt(only_prompt(folder.base))
    assert torch.equal(found.tensors["layer_0"], torch.ones(2, 4))
    assert "perplexity" in found.tensors


def test_a_layer_that_does_not_fit_the_mask_is_reported_and_the_rest_kept(folder):
    """W11: lmprobe keeps layers of differently padded batches under one mask, and then fails for ever."""
    folder.add(
        "m", "p", {"layer_0": torch.ones(1, 3, 4), "layer_1": torch.ones(1, 7, 4), "attention_mask": mask(1, 1, 1)}
    )
    found = load_prompt(only_prompt(folder.base))
    assert set(found.tensors) == {"attention_mask", "layer_0"}
    assert len(found.problems) == 1
    assert "layer_1" in found.problems[0]


def test_a_truncated_file_is_reported_and_leaves_the_sidecar_alone(folder):
    """W13: lmprobe raises SafetensorError from every call that meets a truncated file."""
    path = folder.add("m", "p", {"layer_0": torch.ones(1, 3, 4), "attention_mask": mask(1, 1, 1)})
    folder.add("m", "p", {"perplexity": torch.ones(3)}, suffix=".perplexity")
    path.write_bytes(path.read_bytes()[:-20])
    found = load_prompt(only_prompt(folder.base))
    assert set(found.tensors) == {"perplexity"}
    assert path.name in found.problems[0]


def test_layers_without_a_mask_are_not_taken(folder):
    folder.add("m", "p", {"layer_0": torch.ones(1, 3, 4)})
    found = load_prompt(only_prompt(folder.base))
    assert found.tensors == {}
    assert "no mask" in found.problems[0]


def test_names_that_do_not_have_the_hash_they_claim_are_not_believed(folder):
    folder.add("m", "p", {"pooled_mean_layer_0": torch.ones(1, 4)})
    directory = folder.model("m")
    (directory / "_model_name.txt").write_text("another-model")
    (directory / "_manifest.jsonl").write_text(f'{{"hash": "{hash16("p")}", "prompt": "q"}}\n{{"torn')
    [model] = read_layout(folder.base).models
    assert model.name is None
    assert model.prompts[0].text is None


def test_leftover_files_of_killed_writers_and_foreign_ones_are_listed_not_read(folder):
    """W19: lmprobe leaks temp files and its shard registry (W1) claims what it does not have; neither is taken."""
    folder.add("m", "p", {"pooled_mean_layer_0": torch.ones(1, 4)})
    directory = folder.model("m")
    (directory / f"{hash16('p')}.tmp.tmpAbC123").write_bytes(b"half")
    (directory / "_shard_index.json").write_text("{}")
    (folder.base / "photos").mkdir()
    layout = read_layout(folder.base)
    assert sorted(layout.ignored, key=len, reverse=True) == [
        f"{hash16('m')}/{hash16('p')}.tmp.tmpAbC123",
        f"{hash16('m')}/_shard_index.json",
        "photos",
    ]
    assert len(layout.models[0].prompts) == 1


def test_a_folder_that_is_not_there_says_what_to_do(tmp_path: Path):
    with pytest.raises(StoreUnavailableError, match="Give the folder"):
        read_layout(tmp_path / "nowhere")
