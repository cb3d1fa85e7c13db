"""A reference's numbers are those of plain transformers, and depend on the row's text alone."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mrpo_ds.data.plan import Batch
from mrpo_ds.types import Example, Message
from tests.prepared import encode_split

NAMES = ["ref1", "ref2", "ref3"]
"""Llama with ChatML; Gemma 3 (sliding window, soft cap) with another tokenizer and no template; Qwen 2, untied."""


def batch_of(*ids):
    return Batch("train", 0, ids)


ALL = batch_of(*range(12))


def plain_score(path, prompt, response):
    """(log-prob, tokens) of an answer, by transformers alone."""
    tokens = plain_token_logps(path, prompt, response)
    return sum(tokens), len(tokens)


def plain_token_logps(path, prompt, response):
    """Of an answer's tokens, the EOS last: with the model's own template or the plain one, one row, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        text = f"Human:\n{prompt}\n\nAssistant:\n"
    given = tokenizer(text, add_special_tokens=False).input_ids
    answer = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        logps = model(torch.tensor([given + answer])).logits[0].double().log_softmax(-1)
    predicted = logps[len(given) - 1 : -1]
    return predicted.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_plain_transformers_row_by_row(name, material, scorer_of, path_of):
    scored = scorer_of(material, name, batch_tokens=700).score(ALL)
    for b, example in enumerate(ALL.examples(material.splits)):
        for r, response in enumerate(example.responses):
            value, tokens = plain_score(path_of(name), example.prompt[0].content, response)
            assert scored.logps[b, r].item() == pytest.approx(value, rel=1e-5, abs=1e-4)
            assert scored.lengths[b, r].item() == tokens


@pytest.mark.parametrize("name", NAMES)
def test_p29_the_switch_for_the_closing_token_is_worth_exactly_that_token(name, material_of, scorer_of, path_of):
    few = batch_of(0, 1, 2)
    closed, open_ = (material_of(score_eos=scored) for scored in (True, False))
    with_eos = scorer_of(closed, name).score(few)
    without = scorer_of(open_, name).score(few)
    assert (with_eos.lengths - without.lengths == 1).all()
    for b, example in enumerate(few.examples(closed.splits)):
        for r, response in enumerate(example.responses):
            *_, eos = plain_token_logps(path_of(name), example.prompt[0].content, response)
            difference = (with_eos.logps[b, r] - without.logps[b, r]).item()
            assert difference == pytest.approx(eos, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_neither_the_order_nor_the_company_of_a_row_matters(name, material, scorer_of):
    scorer = scorer_of(material, name)
    whole = scorer.score(ALL)
    order = [7, 3, 11, 0, 5, 9, 1, 10, 2, 8, 6, 4]
    shuffled = scorer.score(batch_of(*order))
    torch.testing.assert_close(shuffled.logps, whole.logps[order], rtol=1e-5, atol=1e-5)
    assert torch.equal(shuffled.lengths, whole.lengths[order])
    alone = torch.cat([scorer.score(batch_of(index)).logps for index in range(12)])
    torch.testing.assert_close(alone, whole.logps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_the_size_of_the_forwards_does_not_matter(name, batch_tokens, material, scorer_of):
    usual = scorer_of(material, name).score(ALL)
    other = scorer_of(material, name, batch_tokens).score(ALL)
    torch.testing.assert_close(other.logps, usual.logps, rtol=1e-5, atol=1e-5)


def test_the_same_batch_twice_gives_the_same_bits(material, scorer_of):
    scorer = scorer_of(material, "ref2")
    assert torch.equal(scorer.score(ALL).logps, scorer.score(ALL).logps)


@pytest.mark.parametrize("name", NAMES)
def test_another_policy_changes_no_bit_of_a_reference(name, material_of, scorer_of):
    """The policies have different tokenizers; no response is cut, so every reference sees the same text."""
    answers, readings = [], set()
    for policy in ("llama", "gemma3"):
        material = material_of(policy)
        readings.add(len(material.speakers["policy"].tokenizer("the capital of France").input_ids))
        assert all(report.truncated_rows == 0 for report in (one.report for one in material.prepared.values()))
        answers.append(scorer_of(material, name).score(ALL))
    assert len(readings) == 2
    assert torch.equal(answers[0].logps, answers[1].logps)
    assert torch.equal(answers[0].lengths, answers[1].lengths)


@pytest.mark.parametrize("size", [2, 3, 5, 40])
def test_ranks_share_the_rows_out_and_make_equally_many_forwards(size, material, scorer_of):
    """40 ranks are more than there are rows: those without any run filler, whose result is thrown away."""
    whole = scorer_of(material, "ref1").score(ALL)
    forwards, shares = [], []
    for rank in range(size):
        scorer = scorer_of(material, "ref1", batch_tokens=300, rank=rank, size=size)
        calls = []
        counted = replace(scorer, forward=lambda batch, f=scorer.forward, c=calls: (c.append(0), f(batch))[1])
        shares.append(counted.score(ALL))
        forwards.append(len(calls))
    assert len(set(forwards)) == 1
    summed = torch.stack([share.logps for share in shares])
    assert ((summed != 0).sum(0) == 1).all()  # every row by exactly one rank
    torch.testing.assert_close(summed.sum(0), whole.logps, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(share.lengths, whole.lengths) for share in shares)


def test_prompts_with_fewer_responses_have_zeros_in_the_places_of_the_absent_ones(material, scorer_of):
    def example(name, *responses):
        return Example(name, (Message("user", "Name a colour."),), responses, None, name)

    examples = [example("two", "Red.", "A chair."), example("four", "Red.", "Blue.", "Chair", "")]
    encodings = {"train": encode_split(examples, material.speakers["ref1"].renderer)}
    scored = replace(scorer_of(material, "ref1"), encodings=encodings).score(batch_of(0, 1))
    assert scored.logps.shape == scored.lengths.shape == (2, 4)
    assert scored.logps[0, 2:].tolist() == scored.lengths[0, 2:].tolist() == [0.0, 0.0]
    assert scored.logps[0, 0] == scored.logps[1, 0] < 0
    assert scored.lengths[1, 3] == 1  # an empty answer still has its end of turn


def test_a_cut_response_is_scored_as_far_as_it_is_kept_and_without_an_end(material, scorer_of):
    whole = material.splits["train"][0]
    kept = replace(whole, responses=(whole.responses[0][:12], whole.responses[1]), complete=(False, True))
    encodings = {"train": encode_split([whole, kept], material.speakers["ref2"].renderer)}
    scored = replace(scorer_of(material, "ref2"), encodings=encodings).score(batch_of(0, 1))
    assert scored.lengths[1, 0] == 12  # this tokenizer has a token per character
    assert scored.logps[1, 0] > scored.logps[0, 0]
    assert scored.lengths[0, 0] == len(whole.responses[0]) + 1
    torch.testing.assert_close(scored.logps[1, 1], scored.logps[0, 1], rtol=1e-5, atol=1e-5)


def test_telemetry_counts_the_tokens_that_were_read(material, scorer_of):
    scorer = scorer_of(material, "ref2")
    scored = scorer.score(batch_of(0, 1))
    renderer = material.speakers["ref2"].renderer
    encoded = encode_split([material.splits["train"][index] for index in range(2)], renderer)
    assert scored.tokens == sum(len(row.ids) for rows in encoded for row in rows)
    assert scored.seconds > 0


CONVERSATION = (
    Message("user", "What is the capital of France?"),
    Message("assistant", "Paris is the capital."),
    Message("user", "And what is two plus two?"),
)


def test_earlier_turns_are_scored_too_where_asked(material_of, scorer_of, path_of):
    """Each earlier answer counts as it would as the last one: what follows it changes nothing before it."""
    example = Example("row", CONVERSATION, ("Four.",), None, "row")
    plain, both = (material_of(score_turns=turns).speakers["ref1"].renderer for turns in ("last", "all"))
    encodings = {"train": encode_split([example], both)}
    scored = replace(scorer_of(material_of(score_turns="all"), "ref1"), encodings=encodings).score(batch_of(0))
    first = replace(example, prompt=CONVERSATION[:1], responses=(CONVERSATION[1].content,))
    logps = []
    for one in (first, example):
        parts = {"train": encode_split([one], plain)}
        logps.append(replace(scorer_of(material_of(), "ref1"), encodings=parts).score(batch_of(0)))
    assert scored.lengths.item() == sum(one.lengths.item() for one in logps)
    torch.testing.assert_close(scored.logps, logps[0].logps + logps[1].logps, rtol=1e-5, atol=1e-4)
