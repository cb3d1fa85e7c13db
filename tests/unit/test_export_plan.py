"""The plan of an export: which tensor goes into which file, and what is compared with the input before training."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from mrpo_ds.errors import ConfigError
from mrpo_ds.export import check_names, checkpoint_shapes, exported_shapes, plan_shards
from tests.support import make_model

shapes_of_a_model = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=12
)


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(parameter.shape)


def size_of(shapes: dict[str, tuple[int, ...]], names: list[str], element_bytes: int) -> int:
    return sum(element_bytes * torch.Size(shapes[name]).numel() for name in names)


# ---- files -----------------------------------------------------------------------------------------------------------


@given(shapes_of_a_model, st.integers(1, 2000), st.sampled_from([2, 4, 8]))
def test_every_tensor_is_in_exactly_one_file_in_order(shapes, limit, element_bytes):
    plan = plan_shards(shapes, limit, element_bytes)
    assert [name for names in plan for name in names] == list(shapes)
    assert all(plan) or not shapes


@given(shapes_of_a_model, st.integers(1, 2000), st.sampled_from([2, 4, 8]))
def test_a_file_is_within_the_limit_or_holds_a_single_tensor(shapes, limit, element_bytes):
    plan = plan_shards(shapes, limit, element_bytes)
    for names in plan:
        big = [name for name in names if size_of(shapes, [name], element_bytes) > 0]
        assert size_of(shapes, names, element_bytes) <= limit or len(big) == 1


@given(shapes_of_a_model, st.integers(1, 2000), st.sampled_from([2, 4, 8]))
def test_no_file_could_have_taken_the_next_tensor_too(shapes, limit, element_bytes):
    plan = plan_shards(shapes, limit, element_bytes)
    for names, following in zip(plan, plan[1:], strict=False):
        assert size_of(shapes, [*names, following[0]], element_bytes) > limit


# ---- names and shapes ------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Two layers that share their weight when tied, a kept buffer and one that is not kept."""

    base_model_prefix = "model"

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed = nn.Embedding(7, 3)
        self.lm_head = nn.Linear(3, 7, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed.weight
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("made_anew", torch.zeros(4), persistent=False)


EMBED, HEAD = "model.embed.weight", "lm_head.weight"


@pytest.fixture
def save(tmp_path):
    """Save zeros of the given shapes as a checkpoint and return its path."""

    def save(shapes: dict[str, tuple[int, ...]]) -> str:
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return str(tmp_path)

    return save


def refusal(path: str, model: nn.Module) -> str:
    with pytest.raises(ConfigError) as caught:
        check_names(path, exported_shapes(model, shape_of), model)
    message = str(caught.value)
    assert message.startswith(f"the export would not match the checkpoint at {path!r}: ")
    assert "save_pretrained" in message and "\n" not in message
    return message


def test_tied_weights_stand_once_and_only_kept_buffers_are_written():
    assert exported_shapes(Tiny(tied=True), shape_of) == {EMBED: (7, 3), "kept": (2,)}
    assert exported_shapes(Tiny(tied=False), shape_of) == {EMBED: (7, 3), HEAD: (7, 3), "kept": (2,)}


def test_shapes_are_those_before_sharding():
    model = Tiny(tied=True)
    model.model.embed.weight.full = SimpleNamespace(shape=(70, 30))
    shapes = exported_shapes(model, lambda parameter: parameter.full.shape)
    assert shapes[EMBED] == (70, 30)


@pytest.mark.parametrize(
    ("tied", "shapes"),
    [
        (True, {EMBED: (7, 3), "kept": (2,)}),
        (True, {EMBED: (7, 3), HEAD: (7, 3), "kept": (2,)}),  # the tied head is stored twice
        (True, {"embed.weight": (7, 3), "kept": (2,)}),  # saved from the bare model
        (False, {EMBED: (7, 3), HEAD: (7, 3), "kept": (2,)}),
        (True, {EMBED: (7, 3), "kept": (2,), "vision.weight": (5,)}),  # a part that this model does not have
        (True, {EMBED: (7, 3), "kept": (2,), "made_anew": (4,)}),  # made by every load, so nothing is lost
    ],
)
def test_checkpoints_that_the_export_can_stand_for(save, tied, shapes):
    model = Tiny(tied)
    check_names(save(shapes), exported_shapes(model, shape_of), model)


@pytest.mark.parametrize(
    ("tied", "shapes", "difference"),
    [
        (True, {EMBED: (8, 3), "kept": (2,)}, "embed.weight: (8, 3) there, (7, 3) here"),
        (True, {EMBED: (3, 7), "kept": (2,)}, "embed.weight: (3, 7) there, (7, 3) here"),
        (False, {EMBED: (7, 3), "kept": (2,)}, "lm_head.weight: absent there, (7, 3) here"),
        (True, {EMBED: (7, 3)}, "kept: absent there, (2,) here"),
        (True, {"model.embedding": (7, 3), "kept": (2,)}, "embed.weight: absent there, (7, 3) here"),
    ],
)
def test_a_difference_is_named_with_both_sides(save, tied, shapes, difference):
    assert difference in refusal(save(shapes), Tiny(tied))


def test_many_differences_are_counted(save):
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(6)))
    message = refusal(save({f"{index}.weight": (1, 2) for index in range(6)}), model)
    assert message.count("(1, 2) there, (2, 2) here") == 3 and " and 3 more" in message


def test_a_real_tied_model_and_its_sharded_checkpoint_agree(tmp_path):
    from transformers import AutoModelForCausalLM

    path = make_model(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(path)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    shapes = exported_shapes(model, shape_of)
    assert shapes == checkpoint_shapes(str(tmp_path / "parts")) == checkpoint_shapes(str(path))
    assert "lm_head.weight" not in shapes
    check_names(str(tmp_path / "parts"), shapes, model)


def test_a_real_model_with_a_longer_vocabulary_than_its_checkpoint_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    path = make_model(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(path)
    rows, width = load_file(path / "model.safetensors")["model.embed_tokens.weight"].shape
    model.resize_token_embeddings(rows + 5)
    assert f"embed_tokens.weight: ({rows}, {width}) there, ({rows + 5}, {width}) here" in refusal(str(path), model)
