"""What the policy says to fixed prompts: greedy answers, so that those of two evaluations can be compared.

Each rank that has a prompt to answer gathers a plain copy of the model, one parameter after the other: the sharded
model, its hooks and its mode are left alone, and no rank waits for another within an answer. Where there is no room for
that, the sharded model answers itself, on all ranks together. Nothing here draws a random number.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mrpo_ds.config.schema import Config
from mrpo_ds.console import log
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.distributed.collectives import everywhere, gather_objects
from mrpo_ds.distributed.worlds import World
from mrpo_ds.engine import full_shape, gathered
from mrpo_ds.errors import require
from mrpo_ds.material import POLICY, Material
from mrpo_ds.memory import free_bytes
from mrpo_ds.models import pad_id
from mrpo_ds.types import Example, Message

MOST_OF_MEMORY = 0.5
"""Of the free memory, what a copy of the model may take."""
Sample = dict[str, Any]
"""prompt and text, how many tokens the answer has, and whether it is finished or was cut."""


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked."""

    text: str
    ids: list[int]
    """Up to where the answer begins."""
    max_new_tokens: int


@dataclass(frozen=True)
class Sampler:
    """Asks the policy. Every policy rank has one."""

    model: Any
    """The transformers model that is trained."""
    renderer: Renderer
    prompts: list[Prompt]
    ends: list[int]
    """The tokens that end an answer."""
    rank: int
    size: int
    device: torch.device
    most_of_memory: float = MOST_OF_MEMORY

    def sample(self, before_each: Callable[[], None]) -> list[Sample]:
        """The answers in the order of the prompts. Every rank must call it, and gets all of them.

        before_each() is called before each round of as many answers as there are ranks, on every rank.
        """
        copies = everywhere(self._has_room(), self.device)
        answered = []
        with self._copied() if copies else self._in_place() as model:
            for first in range(0, len(self.prompts), self.size):
                before_each()
                number = first + self.rank
                if number < len(self.prompts):
                    answered.append(json.dumps([number, self._answer(model, self.prompts[number], not copies)]))
                elif not copies:  # layers are gathered in step: a rank without a prompt answers one for nothing
                    self._answer(model, self.prompts[first], together=True)
        every = [json.loads(text) for texts in gather_objects(answered) for text in texts]
        return [sample for _, sample in sorted(every, key=lambda one: int(one[0]))]

    def _answer(self, model: Any, prompt: Prompt, together: bool) -> Sample:
        from transformers import GenerationConfig

        # The model's own file may ask for sampling, penalties and what not: here the likeliest token is taken.
        greedy = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=prompt.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=pad_id(self.renderer.tokenizer),
        )
        model.generation_config = greedy  # or what it leaves open would come from there
        ids = torch.tensor([prompt.ids], device=self.device)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy,
            synced_gpus=together and self.size > 1,
        )
        answer: list[int] = made[0, len(prompt.ids) :].tolist()
        finished = answer[-1] in self.ends
        text = self.renderer.response_text(answer[:-1] if finished else answer)
        return {"prompt": prompt.text, "text": text, "tokens": len(answer), "finished": finished}

    def _has_room(self) -> bool:
        """Whether this rank could hold a copy; on a CPU all that make one may share one host."""
        size = sum(math.prod(full_shape(one)) * one.element_size() for one in self.model.parameters())
        copies = min(self.size, len(self.prompts)) if self.device.type == "cpu" else 1
        return bool(copies * size <= self.most_of_memory * free_bytes(self.device))

    @contextmanager
    def _copied(self) -> Iterator[Any]:
        yield plain_copy(self.model, wanted=self.rank < len(self.prompts))

    @contextmanager
    def _in_place(self) -> Iterator[Any]:
        """The model itself, as it was afterwards."""
        model, own, training = self.model, self.model.generation_config, self.model.training
        model.eval()
        with _quiet("DeepSpeed"):  # its hooks do not know what a cache of keys and values is, and need not
            try:
                yield model
            finally:
                model.generation_config = own
                model.train(training)


def make_sampler(config: Config, model: Any, material: Material, world: World) -> Sampler | None:
    """What asks the prompts of evaluate.samples; None when there are none, or the model cannot answer, which is said.

    Raises ConfigError for a prompt that leaves no room for an answer.
    """
    renderer = material.speakers[POLICY].renderer
    wanted = config.evaluate.samples
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    prompts = []
    for index, text in enumerate(wanted.prompts):
        ids = renderer.prompt_ids([Message("user", text)])
        key = f"evaluate.samples.prompts[{index}]"
        require(len(ids) < limit, key, f"a text of {len(ids)} tokens", f"less than the policy's {limit} positions")
        prompts.append((text, ids))
    prompts += _held_out(material.splits["eval"], wanted.held_out, renderer, limit)
    if not prompts:
        return None
    if not model.can_generate():
        log(f"warning: there will be no samples: {type(model).__name__} cannot generate")
        return None
    asked = [Prompt(text, ids, int(min(wanted.max_new_tokens, limit - len(ids)))) for text, ids in prompts]
    return Sampler(model, renderer, asked, _ends(model, renderer), world.rank, world.size, world.device)


def plain_copy(model: Any, wanted: bool) -> Any:
    """A whole model with the weights of one that is sharded, without its hooks, in evaluation mode.

    Every rank must call it; where it is not wanted, None is returned.
    """
    with torch.device("meta"):
        plain = type(model)._from_config(deepcopy(model.config), dtype=model.dtype) if wanted else None
    made: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay tied
    for parameter in model.parameters():
        with _whole(parameter):
            if wanted:
                made[parameter] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    if plain is None:
        return None
    for source, target in zip(model.modules(), plain.modules(), strict=True):
        for name, one in source.named_parameters(recurse=False, remove_duplicate=False):
            setattr(target, name, made[one])
        kept: dict[str, Tensor] = dict(source.named_buffers(recurse=False))
        kept |= {name: value for name, value in vars(source).items() if isinstance(value, Tensor)}
        for name, value in kept.items():
            setattr(target, name, value.clone())
    return plain.eval()


def _whole(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Context in which a parameter is whole. One that always is stays so: leaving would let it go."""
    is_whole = tuple(parameter.shape) == full_shape(parameter)
    context: AbstractContextManager[Any] = gathered([] if is_whole else [parameter])
    return context


def _held_out(
    examples: Sequence[Example], count: int, renderer: Renderer, limit: float
) -> Iterator[tuple[str, list[int]]]:
    """The text and the ids of the first so many different prompts that leave room for an answer."""
    seen: set[tuple[Message, ...]] = set()
    for index in range(len(examples)):
        if len(seen) == count:
            return
        turns = examples[index].prompt
        ids = renderer.prompt_ids(turns)
        if turns not in seen and len(ids) < limit:
            seen.add(turns)
            yield "\n".join(f"{one.role}: {one.content}" for one in turns) if turns[1:] else turns[0].content, ids


def _ends(model: Any, renderer: Renderer) -> list[int]:
    """The tokens that end an answer: the model's own, its tokenizer's, and the one that was trained to."""
    own = getattr(model.generation_config, "eos_token_id", None)
    every = [*(own if isinstance(own, list) else [own]), renderer.tokenizer.eos_token_id, renderer.end_of_turn]
    return sorted({int(one) for one in every if one is not None})


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the warnings of a logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
