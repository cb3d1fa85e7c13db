"""What the policy is asked, and that its answers are those of plain transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.models import load_scorer, load_tokenizer
from mrpo_ds.samples import Prompt, Sampler, make_sampler, plain_copy
from mrpo_ds.types import Example, Message
from tests.support import make_model, world_of_one

QUESTIONS = ["What is the capital of France?", "Two plus two is", "Why?"]
FAMILIES = ["llama", "gemma3", "qwen2", "mamba", "llama4"]


def model_config(path: Path, gradient_checkpointing: bool = False) -> ModelConfig:
    attention = "eager" if path.name == "mamba" else "sdpa"  # it has none
    return ModelConfig(path=str(path), attention=attention, gradient_checkpointing=gradient_checkpointing)


def sampler_of(path: Path, max_new_tokens: int = 12, **options: Any) -> Sampler:
    """With gradient checkpointing where the family can, in training mode: as the policy is."""
    checkpointing = options.pop("gradient_checkpointing", False)
    config = model_config(path, gradient_checkpointing=checkpointing)
    scorer = load_scorer(config, torch.float32, trainable=True)
    renderer = Renderer(load_tokenizer(config), "policy", "auto", score_eos=True)
    prompts = [Prompt(text, renderer.prompt_ids([Message("user", text)]), max_new_tokens) for text in QUESTIONS]
    ends = options.pop("ends", [renderer.tokenizer.eos_token_id])
    return Sampler(scorer.model, renderer, prompts, ends, rank=0, size=1, device=torch.device("cpu"), **options)


def plain_answers(path: Path, sampler: Sampler, max_new_tokens: int = 12) -> list[list[int]]:
    """By transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    answers = []
    for prompt in sampler.prompts:
        ids = torch.tensor([prompt.ids])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sampler.ends,
            pad_token_id=0,
        )
        answers.append(made[0, len(prompt.ids) :].tolist())
    return answers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_model(root / family, family) for family in FAMILIES}


@pytest.mark.parametrize("most_of_memory", [0.5, 0.0], ids=["copied", "in place"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_are_those_of_plain_transformers(
    models: dict[str, Path], family: str, most_of_memory: float
) -> None:
    sampler = sampler_of(models[family], most_of_memory=most_of_memory, gradient_checkpointing=family != "mamba")
    with world_of_one():
        samples = sampler.sample(lambda: None)
    tokenizer = sampler.renderer.tokenizer
    assert [sample["prompt"] for sample in samples] == QUESTIONS
    for sample, ids in zip(samples, plain_answers(models[family], sampler), strict=True):
        finished = ids[-1] in sampler.ends
        assert sample["text"] == tokenizer.decode(ids[: len(ids) - finished])
        assert (sample["tokens"], sample["finished"]) == (len(ids), finished)


@pytest.mark.parametrize("most_of_memory", [0.5, 0.0], ids=["copied", "in place"])
def test_nothing_of_the_model_or_of_the_random_numbers_changes(models: dict[str, Path], most_of_memory: float) -> None:
    sampler = sampler_of(models["llama"], most_of_memory=most_of_memory, gradient_checkpointing=True)
    model = sampler.model
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=3.0, max_length=9)

    def state() -> dict[str, Any]:
        return {
            "weights": {name: value.clone() for name, value in model.state_dict().items()},
            "modes": [module.training for module in model.modules()],
            "generation": model.generation_config.to_dict(),
            "config": model.config.to_dict(),
            "random": torch.get_rng_state(),
            "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
            "gradients": [parameter.requires_grad for parameter in model.parameters()],
        }

    before = state()
    with world_of_one():
        samples = sampler.sample(lambda: None)
    after = state()
    assert all(torch.equal(before["weights"][name], value) for name, value in after["weights"].items())
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert before.pop("weights").keys() == after.pop("weights").keys() and before == after
    assert [one["tokens"] for one in samples] == list(map(len, plain_answers(models["llama"], sampler)))


def test_an_answer_is_finished_by_any_of_its_end_tokens_or_cut(models: dict[str, Path]) -> None:
    whole = sampler_of(models["llama"], ends=[])
    with world_of_one():
        cut = whole.sample(lambda: None)
        assert [(one["tokens"], one["finished"]) for one in cut] == [(12, False)] * 3
        ids = plain_answers(models["llama"], whole)[0]
        ended = replace(whole, ends=[ids[4]]).sample(lambda: None)[0]
    place = ids.index(ids[4])
    assert (ended["tokens"], ended["finished"]) == (place + 1, True)
    assert ended["text"] == whole.renderer.response_text(ids[:place])


def test_what_is_called_before_each_answer_may_stop_it_and_leaves_the_model_as_it_was(
    models: dict[str, Path],
) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    sampler = sampler_of(models["llama"], most_of_memory=0.0)
    own = sampler.model.generation_config
    with world_of_one(), pytest.raises(Stop):
        sampler.sample(stop)
    assert sampler.model.training and sampler.model.generation_config is own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_copy_computes_the_same_and_shares_nothing(models: dict[str, Path], family: str) -> None:
    scorer = load_scorer(model_config(models[family]), torch.float32, trainable=True)
    model = scorer.model.eval()
    copy = plain_copy(model, wanted=True)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, model(ids).logits)
    assert not any(tensor.is_meta for tensor in (*copy.parameters(), *copy.buffers()))
    ours = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not ours & {tensor.data_ptr() for tensor in (*copy.parameters(), *copy.buffers())}
    tied = [one.get_output_embeddings().weight is one.get_input_embeddings().weight for one in (copy, model)]
    assert tied[0] == tied[1]
    assert plain_copy(model, wanted=False) is None


class TestWhatIsAsked:
    """make_sampler takes these parts of a material and a configuration."""

    @staticmethod
    def make(path: Path, limit: int = 512, **samples: Any) -> Sampler | None:
        from types import SimpleNamespace

        from mrpo_ds.config.outputs import EvaluateConfig, SamplesConfig
        from mrpo_ds.config.schema import Config

        sampler = sampler_of(path)
        sampler.model.config.max_position_embeddings = limit
        turns = [
            (Message("user", "First?"),),
            (Message("user", "First?"),),
            (Message("system", "Be short."), Message("user", "Second?")),
            (Message("user", "long " * 60),),
            (Message("user", "Third?"),),
        ]
        examples = [Example(str(i), prompt, ("a", "b"), None, f"row {i}") for i, prompt in enumerate(turns)]
        material: Any = SimpleNamespace(
            speakers={"policy": SimpleNamespace(renderer=sampler.renderer)}, splits={"eval": examples}
        )
        world: Any = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"))
        config = Config(evaluate=EvaluateConfig(samples=SamplesConfig(**samples)))
        return make_sampler(config, sampler.model, material, world)

    def test_texts_come_first_then_the_first_different_held_out_prompts_that_leave_room(
        self, models: dict[str, Path]
    ) -> None:
        sampler = self.make(models["llama"], limit=90, prompts=["Mine?"], held_out=3, max_new_tokens=5)
        assert sampler is not None
        second = "system: Be short.\nuser: Second?"
        assert [one.text for one in sampler.prompts] == ["Mine?", "First?", second, "Third?"]
        assert {one.max_new_tokens for one in sampler.prompts} == {5}
        fewer = self.make(models["llama"], held_out=2)
        assert fewer is not None and [one.text for one in fewer.prompts] == ["First?", second]

    def test_an_answer_ends_where_the_positions_of_the_model_do(self, models: dict[str, Path]) -> None:
        sampler = self.make(models["llama"], limit=90, held_out=1, max_new_tokens=500)
        assert sampler is not None
        (prompt,) = sampler.prompts
        assert prompt.max_new_tokens == 90 - len(prompt.ids) < 90

    def test_nothing_is_asked_when_nothing_is_wanted(self, models: dict[str, Path]) -> None:
        assert self.make(models["llama"], held_out=0) is None

    def test_a_text_that_leaves_no_room_is_told(self, models: dict[str, Path]) -> None:
        from mrpo_ds.errors import ConfigError

        with pytest.raises(ConfigError, match=r"evaluate.samples.prompts\[1\] is .*allowed: less than the policy's 40"):
            self.make(models["llama"], limit=40, prompts=["a", "long " * 60])
