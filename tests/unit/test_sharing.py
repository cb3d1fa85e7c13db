"""Responses that share their prompt's tokens have the log-probs and gradients that they have alone, in every family."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from mrpo_ds import models
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.models import SequenceScorer, score
from mrpo_ds.ops import attention
from mrpo_ds.ops.attention import MaskPlan, visible
from mrpo_ds.ops.segments import attend
from mrpo_ds.preflight import unfit_for_sharing
from tests.families import FAMILIES, GROUPED, VOCABULARY, WINDOW, build, plain_logp

SHARED = Layout(0, shared=True)
ONE_ROW = replace(SHARED, single_row=True)
GROUPS = [(17, (5, 9, 30, 1)), (1, (4, 2)), (30, (6,)), (WINDOW - 1, (3, 3, 20)), (40, (12, 11))]
"""(prompt, responses) tokens; most are longer than the sliding window, some responses alone."""


def random_groups(lengths=GROUPS, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def tokens(count):
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    return [
        [Encoded([*prompt, *tokens(count)], len(prompt)) for count in responses]
        for prompt, responses in ((tokens(length), responses) for length, responses in lengths)
    ]


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def model(request):
    return FAMILIES[request.param]()


@pytest.mark.parametrize("layout", [SHARED, ONE_ROW], ids=["rows", "one row"])
def test_values_are_those_of_plain_transformers_row_by_row(model, layout):
    groups = random_groups()
    with torch.no_grad():
        ours = score(SequenceScorer(model), layout.collate(groups))
        alone = torch.stack([plain_logp(model, sequence) for group in groups for sequence in group])
    torch.testing.assert_close(ours.double(), alone, rtol=1e-5, atol=1e-4)


def test_gradients_are_those_of_plain_transformers(model):
    """Each response with a weight of its own, so that no two errors cancel."""
    groups = random_groups()
    weights = torch.linspace(-1, 2, sum(map(len, groups)))
    (score(SequenceScorer(model), SHARED.collate(groups)) * weights).sum().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    alone = torch.stack([plain_logp(model, sequence) for group in groups for sequence in group])
    (alone * weights).sum().backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    model.zero_grad()


@pytest.mark.parametrize("form", ["sdpa", "eager"])
def test_every_attention_that_takes_masks(form):
    model = build("gemma3_text", form, **GROUPED, head_dim=8, sliding_window=WINDOW)
    groups = random_groups()
    with torch.no_grad():
        ours = score(SequenceScorer(model), SHARED.collate(groups))
        alone = torch.stack([plain_logp(model, sequence) for group in groups for sequence in group])
    torch.testing.assert_close(ours.double(), alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("window", [None, 4])
def test_the_block_mask_of_flex_attention_is_the_same_matrix(window):
    batch = SHARED.collate(random_groups())
    mask = visible(batch.segments, batch.position_ids, window)
    kind = "sliding_attention" if window else "full_attention"
    block = MaskPlan("flex_attention", {kind: window}).masks(batch.segments, batch.position_ids, torch.float32)
    rows, tokens = batch.input_ids.shape
    row, query, key = torch.meshgrid(torch.arange(rows), torch.arange(tokens), torch.arange(tokens), indexing="ij")
    assert torch.equal(block.mask_mod(row, torch.zeros_like(row), query, key), mask)
    states = torch.randn(3, rows, 2, tokens, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=mask.unsqueeze(1))
    torch.testing.assert_close(flex_attention(*states, block_mask=block), expected, rtol=1e-4, atol=1e-5)


def test_what_is_scored_inside_the_shared_tokens_counts_for_every_response():
    """Earlier turns, a common beginning of the responses, and a prompt that is scored by itself."""
    model = FAMILIES["llama, tied"]()
    first, second = random_groups([(20, (9, 14))])[0]
    same = [*first.ids[:20], *first.ids[20:24]]
    group = [
        replace(first, earlier=((3, 7), (12, 15))),
        replace(second, ids=[*same, *second.ids[24:]], earlier=((3, 7),)),
        Encoded(first.ids[:20], 1),
        Encoded(first.ids[:22], 20),
    ]
    assert SHARED.spans(group) == [(0, 20), (20, 9), (20, 14), (20, 0), (20, 2)]
    batch = SHARED.collate([group])
    assert batch.input_ids.numel() == 45
    with torch.no_grad():
        ours = score(SequenceScorer(model), batch)
        alone = torch.stack([plain_logp(model, sequence) for sequence in group])
    torch.testing.assert_close(ours.double(), alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_goes_by_segments_in_every_layer(checkpointing, monkeypatch):
    """Also where backward runs the layers again: nothing may lose what the mask says of its segments."""
    seen = []
    monkeypatch.setattr(models, "attend", lambda *args: seen.append(args[0].shape) or attend(*args))
    model = build("llama", **GROUPED).train()
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    score(SequenceScorer(model), SHARED.collate(random_groups())).sum().backward()
    assert len(seen) == model.config.num_hidden_layers * (1 + checkpointing)


def test_gradients_are_the_same_bits_every_time():
    """The prompt's last token predicts the first of every response: 300 gradients meet there, from two threads."""
    model = build("llama", **{**GROUPED, "hidden_size": 256, "num_hidden_layers": 1})
    batch = SHARED.collate(random_groups([(40, (2,) * 300)]))
    seen, threads = set(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(20):
            model.zero_grad()
            score(SequenceScorer(model), batch).sum().backward()
            seen.add(tuple(parameter.grad.double().sum().item() for parameter in model.parameters()))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1


def unfit(model, longest=1000, prompt=20, response=20):
    scorer = SequenceScorer(model)
    (row,) = random_groups([(prompt, (response,))])[0]
    forward = torch.no_grad()(partial(score, scorer))
    return unfit_for_sharing(scorer, forward, row, torch.device("cpu"), longest)


def test_preflight_finds_every_family_fit(model):
    assert unfit(model) == ""


@pytest.mark.parametrize("response", [1, 2, 20])
def test_responses_that_see_each_other_are_found_however_short_the_first_row_is(response, monkeypatch):
    monkeypatch.setattr(
        attention, "visible", lambda segments, positions, window: torch.ones(1, *2 * [positions.shape[1]]).tril().bool()
    )
    model = build("llama", attention="eager", **GROUPED)  # whose mask says everything
    assert "a response's log-prob changes with the other response" in unfit(model, response=response)


def test_a_model_that_ignores_the_mask_is_found():
    class Blind(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            plain = self.model.forward
            self.model.forward = lambda attention_mask=None, **kwargs: plain(**kwargs)

    torch.manual_seed(0)
    blind = Blind(LlamaConfig(**GROUPED))
    assert unfit(blind).startswith("Blind: the log-prob of a response is -")


def test_a_model_with_another_window_than_its_configuration_says_is_found():
    """A window that is longer than the row that is tried first would go unseen there."""
    model = build("mistral", **GROUPED, head_dim=8, sliding_window=100)
    plain = model.model.forward

    def forward(position_ids, attention_mask=None, **kwargs):
        if attention_mask is None:  # transformers' own mask has a shorter window
            model.config.sliding_window = 90
        result = plain(position_ids=position_ids, attention_mask=attention_mask, **kwargs)
        model.config.sliding_window = 100
        return result

    model.model.forward = forward
    assert unfit(model, longest=100) == ""
    assert "behind a shared prompt" in unfit(model, longest=101)


@pytest.mark.parametrize(
    "kind, options, why",
    [
        (
            "llama4_text",
            {"layer_types": ["chunked_attention", "full_attention"]},
            "layers of the kind chunked_attention",
        ),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "layers of the kind linear_attention"),
    ],
)
def test_kinds_of_layers_without_a_mask_of_ours_are_refused_by_name(kind, options, why):
    config = AutoConfig.for_model(kind, **GROUPED, head_dim=8, num_experts=4, num_local_experts=4, **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert unfit(model) == f"{type(model).__name__}: it has {why}"


def test_flash_attention_and_models_without_attention_are_refused():
    model = FAMILIES["llama, tied"]()
    model.config._attn_implementation = "flash_attention_2"
    assert "attention 'flash_attention_2' takes no mask" in unfit(model)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    assert unfit(mamba).startswith("MambaForCausalLM: ")
