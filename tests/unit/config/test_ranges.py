"""Every range of the schema, and what the sections demand of each other: key, value and what is allowed."""

import pytest

from mrpo_ds.errors import ConfigError

RANGES = [
    # override, key in the message, value in the message, allowed
    ("model.dtype=fp64", "model.dtype", "'fp64'", "auto | bf16 | fp32"),
    (
        "model.attention=flash",
        "model.attention",
        "'flash'",
        "sdpa | eager | flex_attention | flash_attention_2 | flash_attention_3",
    ),
    ("model.chat_template=own", "model.chat_template", "'own'", "auto | plain"),
    ("references.0.name='a/b'", "references[a/b].name", "'a/b'", "letters, digits, '-', '_' and '.'"),
    ("references.0.name=''", "references[].name", "''", "letters, digits"),
    ("references.0.name=policy", "references[policy].name", "'policy'", "any other name"),
    ("references.0.dtype=int8", "references[one].dtype", "'int8'", "auto | bf16 | fp32"),
    ("references.1.attention=x", "references[two].attention", "'x'", "sdpa | eager"),
    ("references.1.chat_template=x", "references[two].chat_template", "'x'", "auto | plain"),
    ("references.1.sharding=zero2", "references[two].sharding", "'zero2'", "none | zero3"),
    ("references.0.batch_tokens=0", "references[one].batch_tokens", "0", ">= 1 token"),
    ("topology.policy=0", "topology.policy", "0", ">= 1 rank"),
    ("topology.references.two=0", "topology.references.two", "0", ">= 1 rank"),
    ("topology.placement=remote", "topology.placement", "'remote'", "served | colocated | stored"),
    ("topology.store_missing=load", "topology.store_missing", "'load'", "refuse | score"),
    ("topology.store_check_fraction=1.1", "topology.store_check_fraction", "1.1", "0 to 1"),
    ("topology.run_ahead=-1", "topology.run_ahead", "-1", ">= 0 steps"),
    ("topology.timeout_seconds=0", "topology.timeout_seconds", "0.0", "> 0 seconds"),
    ("topology.timeout_seconds=inf", "topology.timeout_seconds", "inf", "> 0 seconds"),
    ("data.train.0.limit=0", "limit of data source 'train.jsonl'", "0", ">= 1 rows, or null"),
    ("data.view=all", "data.view", "'all'", "auto | pair | triple | ranked | best | unpaired | point"),
    ("data.eval_view=all", "data.eval_view", "'all'", "auto | pair | triple | ranked | best | unpaired | point"),
    ("data.max_length=1", "data.max_length", "1", ">= 2 tokens"),
    ("data.max_dropped_fraction=1.5", "data.max_dropped_fraction", "1.5", "0 to 1"),
    ("data.max_dropped_fraction=nan", "data.max_dropped_fraction", "nan", "0 to 1"),
    ("data.max_truncated_fraction=-0.1", "data.max_truncated_fraction", "-0.1", "0 to 1"),
    ("train.batch_size=0", "train.batch_size", "0", ">= 1 prompts"),
    ("train.micro_batch_size=0", "train.micro_batch_size", "0", ">= 1 prompts, or null"),
    ("train.micro_batch_tokens=0", "train.micro_batch_tokens", "0", ">= 1 tokens"),
    ("train.epochs=0", "train.epochs", "0", ">= 1"),
    ("train.max_steps=0", "train.max_steps", "0", ">= 1, or null"),
    ("train.learning_rate=0", "train.learning_rate", "0.0", "> 0"),
    ("train.learning_rate=nan", "train.learning_rate", "nan", "> 0"),
    ("train.learning_rate=inf", "train.learning_rate", "inf", "> 0"),
    ("train.weight_decay=-0.1", "train.weight_decay", "-0.1", ">= 0"),
    ("train.adam_beta1=1", "train.adam_beta1", "1.0", "0 <= value < 1"),
    ("train.adam_beta2=-0.5", "train.adam_beta2", "-0.5", "0 <= value < 1"),
    ("train.adam_epsilon=0", "train.adam_epsilon", "0.0", "> 0"),
    ("train.scheduler=cosin", "train.scheduler", "'cosin'", "linear | cosine | constant"),
    ("train.warmup_ratio=1.1", "train.warmup_ratio", "1.1", "0 to 1"),
    ("train.max_grad_norm=0", "train.max_grad_norm", "0.0", "> 0"),
    ("train.seed=-1", "train.seed", "-1", ">= 0"),
    ("checkpoint.every_steps=-1", "checkpoint.every_steps", "-1", ">= 0 steps"),
    ("checkpoint.keep=0", "checkpoint.keep", "0", ">= 1"),
    ("evaluate.every_steps=-1", "evaluate.every_steps", "-1", ">= 0 steps"),
    ("evaluate.suite_limit=0", "evaluate.suite_limit", "0", ">= 1 document, or null"),
    ("evaluate.suite_batch_size=0", "evaluate.suite_batch_size", "0", ">= 1 request"),
    ("evaluate.suite_dtype=fp16", "evaluate.suite_dtype", "'fp16'", "checkpoint | bf16 | fp32"),
    ("evaluate.samples.held_out=-1", "evaluate.samples.held_out", "-1", ">= 0 prompts"),
    ("evaluate.samples.prompts=['Why?',' ']", "evaluate.samples.prompts[1]", "' '", "text that is not empty"),
    ("evaluate.samples.max_new_tokens=0", "evaluate.samples.max_new_tokens", "0", ">= 1 token"),
    ("tracking.wandb.log_model=always", "tracking.wandb.log_model", "'always'", "none | end"),
    ("tracking.peak_tflops=0", "tracking.peak_tflops", "0.0", "> 0 teraflop/s, or null"),
    ("tracking.wandb.mode=on", "tracking.wandb.mode", "'True'", "auto | online | offline | disabled"),
]

EDGES = [  # the last values that are still allowed
    "references.0.batch_tokens=1",
    "topology.run_ahead=0",
    "data.max_length=2",
    "data.max_dropped_fraction=0",
    "data.max_truncated_fraction=1",
    "train.micro_batch_size=1",
    "train.adam_beta1=0",
    "train.warmup_ratio=0",
    "train.warmup_ratio=1",
    "checkpoint.every_steps=0",
    "evaluate.every_steps=0",
    "evaluate.suite_limit=1",
    "evaluate.suite_batch_size=1",
    "evaluate.samples.held_out=0",
    "evaluate.samples.max_new_tokens=1",
]


@pytest.mark.parametrize(("override", "key", "value", "allowed"), RANGES, ids=[row[0] for row in RANGES])
def test_a_value_out_of_range_is_told_with_its_key_and_what_is_allowed(load, override, key, value, allowed):
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert str(caught.value).startswith(f"{key} is {value}; allowed: {allowed}")


@pytest.mark.parametrize("override", EDGES)
def test_the_edges_of_a_range_belong_to_it(load, override):
    load(override)


CONFLICTS = [
    (
        ["train.batch_size=10", "topology.policy=4"],
        "train.batch_size is 10; allowed: a multiple of topology.policy (4). Use 8 or 12.",
    ),
    (
        ["train.batch_size=2", "topology.policy=4"],
        "train.batch_size is 2; allowed: a multiple of topology.policy (4). Use 4.",
    ),
    (
        ["train.batch_size=16", "topology.policy=2", "train.micro_batch_size=3"],
        "train.micro_batch_size is 3; allowed: a divisor of train.batch_size / topology.policy = 16 / 2 = 8.",
    ),
    (
        ["train.batch_size=16", "topology.policy=2", "train.micro_batch_size=16"],
        "train.micro_batch_size is 16; allowed: a divisor of train.batch_size / topology.policy = 16 / 2 = 8.",
    ),
    (["data.train=[]"], "data.train is []; allowed: at least one source."),
    (
        ["references.1.name=one"],
        "references is ['one', 'one']; allowed: every name once, but 'one' stands 2 times.",
    ),
    (
        ["topology.references.three=1"],
        "topology.references is 'three'; allowed: names of references (one, two).",
    ),
    (["references=[]"], "references is []; allowed: at least 1 for loss.name=mrpo."),
    (["loss.name=dpo", "references=[]"], "references is []; allowed: at least 1 for loss.name=dpo."),
    (["data.view=ranked"], "data.view is 'ranked'; allowed: pair, for loss.name=mrpo with these options."),
    (
        ["loss.name=mppo", "data.eval_view=best"],
        "data.eval_view is 'best'; allowed: ranked | pair, for loss.name=mppo with these options.",
    ),
    (
        ["loss.weights=[0.5,0.25,0.25]"],
        "references is ['one', 'two']; allowed: exactly 3 for loss.weights=[0.5, 0.25, 0.25].",
    ),
    (
        ["loss.arwc_assignment=code_swapped", "references=[{name: one, path: p}]"],
        "references is ['one']; allowed: exactly 2 for loss.arwc_assignment=code_swapped.",
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), CONFLICTS, ids=[" ".join(row[0]) for row in CONFLICTS])
def test_what_one_section_demands_of_another(load, overrides, expected):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["topology.policy=4", "train.batch_size=4", "train.micro_batch_size=1"],
        ["topology.policy=2", "train.batch_size=12", "train.micro_batch_size=3"],
        ["references=[{name: one, path: p}]", "topology.references={one: 2}"],
    ],
)
def test_combinations_that_divide_are_accepted(load, overrides):
    load(*overrides)
