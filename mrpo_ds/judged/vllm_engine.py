"""Answers by vLLM, on the GPUs that this process sees. It gets the ids that transformers would get.

Interface of vLLM: LLM(model, **engine_settings).generate(prompts of ids, SamplingParams of each) in that order.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.judged.generation import Request, Speaker, draws_seed

AT_ONCE = 256
"""Questions that the engine is given together: it makes its own batches, and wants many to choose from."""


class VllmBackend:
    """One engine of vLLM.

    Args:
        path: a directory or a Hub id; its weights keep the dtype that they were saved in.
        speaker: of the model.
        seed: of the engine.
        device: None or "cuda": the GPUs that this process sees hold the model together.

    Raises:
        ConfigError: vLLM is not installed, there is no GPU, or vLLM refuses the model.
    """

    def __init__(self, path: str, speaker: Speaker, seed: int, device: str | None) -> None:
        check_installed()
        gpus = count_gpus(device)
        from vllm import LLM

        try:
            self._engine: Any = LLM(**engine_settings(path, seed, gpus))
        except (ValueError, RuntimeError, OSError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"vLLM cannot serve the model at {path!r} on {gpus} GPUs: {reason}. CUDA_VISIBLE_DEVICES says which "
                "GPUs it has; --backend transformers needs no vLLM."
            ) from error
        longest = int(self._engine.llm_engine.model_config.max_model_len)
        self.limit: int | None = longest if speaker.limit is None else min(longest, speaker.limit)
        self.at_once = AT_ONCE
        self._ends = sorted(speaker.ends)

    def generate(self, requests: Sequence[Request], most: int) -> list[list[int]]:
        """See Backend."""
        from vllm import SamplingParams, TokensPrompt

        outputs = self._engine.generate(
            [TokensPrompt(prompt_token_ids=request.ids) for request in requests],
            [SamplingParams(**sampling_settings(request, most, self._ends)) for request in requests],
            use_tqdm=False,
        )
        made = [output.outputs[0] for output in outputs]
        return [with_end(list(one.token_ids), one.finish_reason == "stop", self._ends) for one in made]

    def close(self) -> None:
        """Let go of the engine: its process ends when nothing refers to it."""
        import gc

        self._engine = None
        gc.collect()


def with_end(ids: list[int], ended: bool, ends: Sequence[int]) -> list[int]:
    """New ids of which the last one ended the answer, where one did: vLLM may leave it out."""
    return [*ids, ends[0]] if ended and ids[-1:] not in [[one] for one in ends] else ids


def check_installed() -> None:
    """Raise ConfigError, with how to install it, where vLLM is missing."""
    if find_spec("vllm") is None:
        raise ConfigError(
            "the backend of answers is 'vllm', and the package vllm is not installed; install it with "
            "pip install 'mrpo-ds[vllm]' (it pins its own torch: an environment of its own is best), or use "
            "--backend transformers."
        )


def count_gpus(device: str | None) -> int:
    """How many GPUs hold the model. Raises ConfigError for a device that vLLM is not used on."""
    import torch

    if device not in (None, "cuda"):
        raise ConfigError(
            f"the device of answers is {device!r}; allowed with vLLM: cuda. CUDA_VISIBLE_DEVICES chooses its GPUs."
        )
    count = torch.cuda.device_count()
    if not count:
        raise ConfigError("the backend of answers is 'vllm', and there is no GPU here; use --backend transformers.")
    return count


def engine_settings(path: str, seed: int, gpus: int) -> dict[str, Any]:
    """The arguments of vllm.LLM."""
    return {
        "model": path,
        "dtype": saved_dtype(path),
        "tensor_parallel_size": gpus,
        "seed": seed,
        # The model's own file may ask for sampling and penalties; requests say all.
        "generation_config": "vllm",
        "trust_remote_code": False,
    }


def saved_dtype(path: str) -> str:
    """The dtype of a checkpoint as vLLM names it: its "auto" would make half precision of float32."""
    from mrpo_ds.models import load_model_config

    dtype = getattr(load_model_config(ModelConfig(path=path)), "dtype", None)
    return "auto" if dtype is None else str(dtype).removeprefix("torch.")


def sampling_settings(request: Request, most: int, ends: Sequence[int]) -> dict[str, Any]:
    """The arguments of vllm.SamplingParams for one request."""
    settings: dict[str, Any] = {
        "n": 1,
        "temperature": request.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": most,
        "stop_token_ids": list(ends),
        "detokenize": False,
    }
    return settings | ({"seed": draws_seed(request.draws)} if request.temperature else {})
