"""Answers by transformers: several questions a forward, each row as if it were alone.

Rows are padded on the left and the padding is masked, so a greedy answer is the same in every company, as far as the
arithmetic is: in bf16 another shape can round another way. Sampling takes one random number a token and row, of a
generator that the row's turn alone names, and picks the token at that height of the cumulated probabilities.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrpo_ds.errors import ConfigError, MrpoError
from mrpo_ds.judged.generation import Request, Speaker
from mrpo_ds.leaderboard.candidates import load_whole
from mrpo_ds.memory import freed_is_kept


class Draws:
    """A logits processor: all but the token that is taken next become impossible."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._temperatures = [request.temperature for request in requests]
        self._numbers = [random.Random(request.draws) for request in requests]  # a text seeds by its SHA-512

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        """Logits [N, V] of the next token -> [N, V], 0 at the one that is taken and -inf elsewhere."""
        heights = [one.random() for one in self._numbers]
        taken = [
            int(logits.argmax()) if temperature == 0 else pick(logits, temperature, height)
            for logits, temperature, height in zip(scores, self._temperatures, heights, strict=True)
        ]
        places = torch.tensor(taken, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, places, 0.0)


def pick(logits: Tensor, temperature: float, height: float) -> int:
    """The token at a height in [0, 1) of the cumulated softmax(logits / temperature); logits [V]."""
    sums = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    below = int((sums <= height * sums[-1]).sum())
    return min(below, len(sums) - 1)


class TransformersBackend:
    """A model of transformers on one device.

    Args:
        path: a directory or a Hub id; its weights keep the dtype that they were saved in.
        speaker: of the model.
        batch_size: questions a forward.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.

    Raises:
        ConfigError: a checkpoint that is not whole, a model that cannot generate, a device that is not there.
        MrpoError: the device has not enough memory for the model.
    """

    def __init__(self, path: str, speaker: Speaker, batch_size: int, device: str | None) -> None:
        self.limit = speaker.limit
        self.at_once = batch_size
        self._device = find_device(device)
        self._ends = sorted(speaker.ends)
        self._pad = _pad_id(speaker)
        model = load_whole(path, dtype="auto").eval()
        try:
            self._model: Any = model.to(self._device)
        except torch.OutOfMemoryError as error:
            raise MrpoError(
                f"{self._device} has not enough memory for the model at {path!r}; --backend vllm spreads it over all "
                "GPUs that are seen."
            ) from error
        if not self._model.can_generate():
            kind = type(self._model).__name__
            raise ConfigError(f"the model at {path!r} ({kind}) cannot generate; allowed: causal language models.")

    def generate(self, requests: Sequence[Request], most: int) -> list[list[int]]:
        """See Backend. Raises MrpoError when the device has not enough memory."""
        from transformers import GenerationConfig, LogitsProcessorList

        # The model's own file may ask for sampling, penalties and what not: here the requests say all.
        config = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=most, eos_token_id=self._ends or None, pad_token_id=self._pad
        )
        self._model.generation_config = config  # or what it leaves open would come from there
        width = max(len(request.ids) for request in requests)
        ids = torch.full((len(requests), width), self._pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.ids) :] = torch.tensor(request.ids)
            mask[row, width - len(request.ids) :] = 1
        samples = any(request.temperature for request in requests)
        try:
            with freed_is_kept(self._device):
                made = self._model.generate(
                    ids.to(self._device),
                    attention_mask=mask.to(self._device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([Draws(requests)] if samples else []),
                )
        except torch.OutOfMemoryError as error:
            raise MrpoError(
                f"{self._device} has not enough memory for {len(requests)} questions at once; a lower "
                "generation.batch_size of the benchmark needs less. What was answered is kept."
            ) from error
        return [self._until_end(row) for row in made[:, width:].tolist()]

    def close(self) -> None:
        """Let go of the model's memory."""
        import gc

        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _until_end(self, ids: list[int]) -> list[int]:
        """A row up to the token that ended it; what follows fills it up to the longest one."""
        return next((ids[: place + 1] for place, one in enumerate(ids) if one in self._ends), ids)


def find_device(name: str | None) -> torch.device:
    """The device of a name; None is a GPU where there is one, else the CPU. Raises ConfigError for any other."""
    count = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if count else "cpu")
    usable = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    if name not in usable:
        here = "" if count else "; there is no GPU here"
        raise ConfigError(f"the device of answers is {name!r}; allowed: {' | '.join(usable)}{here}.")
    return torch.device(name)


def _pad_id(speaker: Speaker) -> int:
    from mrpo_ds.models import pad_id

    return pad_id(speaker.renderer.tokenizer)
