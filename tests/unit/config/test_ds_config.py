"""The DeepSpeed configuration: whose keys are whose, and that DeepSpeed itself accepts what we give it."""

import json
from pathlib import Path

import pytest

from mrpo_ds.config.ds_config import (
    OWNED_KEYS,
    QUANTIZED,
    check_partitions,
    check_restorable,
    frozen_ds_config,
    read_ds_config,
    training_ds_config,
    uses_cpu_optimizer,
)
from mrpo_ds.config.schema import Config
from mrpo_ds.errors import ConfigError

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@pytest.fixture
def refused(tmp_path):
    """The message with which a file of the given content is refused."""

    def refuse(content: object) -> str:
        file = tmp_path / "ds.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            read_ds_config(str(file))
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


@pytest.mark.parametrize(
    ("zero", "says"),
    [
        ({"offload_optimizer": {"device": "nvme"}}, "offload_optimizer.device is 'nvme'"),
        ({"offload_param": {"device": "nvme"}}, "offload_param.device is 'nvme'"),
        ({"offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "offload_optimizer.ratio is 0.5"),
        ({"offload_optimizer": {"device": "cpu", "super_offload": True}}, "offload_optimizer.super_offload is True"),
        ({"mics_shard_size": 4}, "mics_shard_size is 4"),
        ({"zenflow": {"topk_ratio": 0.1}}, "zenflow is {'topk_ratio': 0.1}"),
        ({"stage": 2, "round_robin_gradients": True}, "round_robin_gradients is True"),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, "offload_optimizer.device is 'cpu'"),
        ({"stage": 1, "parameter_alignment": 128}, "parameter_alignment is 128"),
    ],
)
def test_sharding_whose_state_no_checkpoint_holds_is_refused(zero, says):
    with pytest.raises(ConfigError) as caught:
        check_restorable("ds.json", {"zero_optimization": {"stage": 3, **zero}})
    message = str(caught.value)
    assert message.startswith(f"ds.json: zero_optimization.{says}") and message.endswith("or checkpoint.every_steps=0.")


def test_every_shipped_sharding_can_be_resumed():
    for file in SHIPPED:
        check_restorable(str(file), read_ds_config(str(file)))


@pytest.mark.parametrize("key", QUANTIZED)
def test_quantized_weights_and_gradients_are_refused_with_the_reason(refused, key):
    message = refused({"zero_optimization": {"stage": 3, key: True}})
    assert f"zero_optimization.{key} is True; allowed: false. {QUANTIZED[key]}" in message


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage3_prefetch_bucket_size", 1000),
        ("offload_param", {"device": "cpu"}),
        ("zero_hpz_partition_size", 8),
        ("mics_shard_size", 4),
    ],
)
def test_what_only_stage_3_heeds_is_refused_with_whole_weights(refused, stage, key, value):
    message = refused({"zero_optimization": {"stage": stage, key: value}})
    assert f"zero_optimization.{key} has no effect with stage {stage}" in message
    assert "allowed: remove it, or set stage to 3." in message


def test_a_quantization_that_is_switched_off_is_no_mistake(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3} | dict.fromkeys(QUANTIZED, False)}))
    assert read_ds_config(str(file))["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(("size", "ranks"), [(1, 3), (2, 2), (2, 4), (8, 64), (4, 4)])
def test_groups_with_a_second_copy_of_the_weights_make_up_all_ranks(size, ranks):
    check_partitions("ds.json", {"zero_optimization": {"zero_hpz_partition_size": size}}, ranks)
    check_partitions("ds.json", {"zero_optimization": {}}, ranks)


@pytest.mark.parametrize(
    ("size", "ranks", "says"),
    [
        (8, 4, "8; allowed: a divisor of topology.policy (4): 1 | 2 | 4."),
        (4, 6, "4; allowed: a divisor of topology.policy (6): 1 | 2 | 3 | 6."),
        (2, 1, "2; allowed: a divisor of topology.policy (1): 1."),
        (0, 4, "0; allowed: >= 1 rank"),
        (-2, 4, "-2; allowed: >= 1 rank"),
        ("2", 4, "'2'; allowed: >= 1 rank"),
        (2.0, 4, "2.0; allowed: >= 1 rank"),
        (True, 4, "True; allowed: >= 1 rank"),
    ],
)
def test_groups_that_do_not_are_refused_with_both_numbers(size, ranks, says):
    with pytest.raises(ConfigError) as caught:
        check_partitions("ds.json", {"zero_optimization": {"zero_hpz_partition_size": size}}, ranks)
    assert str(caught.value).startswith(f"ds.json: zero_optimization.zero_hpz_partition_size is {says}")


@pytest.mark.parametrize(("key", "owner"), OWNED_KEYS.items())
def test_a_key_that_we_own_is_refused_with_the_setting_that_owns_it(refused, key, owner):
    message = refused({"zero_optimization": {"stage": 3}, key: 1})
    assert f"'{key}' must not be set there" in message and f"set {owner} instead" in message


@pytest.mark.parametrize("owner", sorted(set(OWNED_KEYS.values())))
def test_every_owner_is_a_setting_that_there_is(owner):
    section, _, key = owner.split()[0].partition(".")
    assert hasattr(getattr(Config(), section), key)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{not json", "is not JSON: "),
        ("", "is not JSON: "),
        ([1, 2], "is not a JSON object"),
        ({}, "zero_optimization.stage is None; allowed: 1 | 2 | 3"),
        ({"zero_optimization": {}}, "zero_optimization.stage is None; allowed: 1 | 2 | 3"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage is 0; allowed: 1 | 2 | 3"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage is True; allowed: 1 | 2 | 3"),
        ({"zero_optimization": {"stage": "2"}}, "zero_optimization.stage is 2; allowed: 1 | 2 | 3"),
        ({"zero_optimization": 3}, "zero_optimization.stage is None; allowed: 1 | 2 | 3"),
        ({"zero_optimisation": {"stage": 3}}, "zero_optimization.stage is None; allowed: 1 | 2 | 3"),
    ],
)
def test_a_file_that_says_something_else_is_refused(refused, content, says):
    assert says in refused(content)


def test_a_file_that_is_not_there_or_not_a_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; see ds_configs"):
        read_ds_config(str(tmp_path / "no.json"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_ds_config(str(tmp_path))


def test_batch_keys_are_assembled_here_and_satisfy_deepspeeds_equation():
    sharding = {"zero_optimization": {"stage": 3}}
    config = training_ds_config(sharding, ranks=6, max_grad_norm=0.5, bf16=False)
    assert [config[key] for key in BATCH_KEYS] == [6, 1, 1]
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {"stage": 3}
    assert sharding == {"zero_optimization": {"stage": 3}}, "the caller's dictionary is not touched"


def test_bf16_reduces_in_fp32_and_fp32_says_nothing():
    sharding = {"zero_optimization": {"stage": 3}}
    with_bf16 = training_ds_config(sharding, 1, 1.0, bf16=True)
    assert with_bf16["bf16"] == {"enabled": True} and with_bf16["communication_data_type"] == "fp32"
    without = training_ds_config(sharding, 1, 1.0, bf16=False)
    assert "bf16" not in without and "fp16" not in without and "communication_data_type" not in without


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 3}, False),
        ({"stage": 3, "offload_optimizer": None}, False),
        ({"stage": 3, "offload_optimizer": {"device": "none"}}, False),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, True),
        ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, True),
    ],
)
def test_an_offloaded_optimizer_runs_on_the_cpu(zero, expected):
    assert uses_cpu_optimizer({"zero_optimization": zero}) is expected


@pytest.fixture(scope="module")
def deepspeed_reads():
    """DeepSpeed's own reading of a configuration, in a world of one; it raises on what it does not know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        from deepspeed.runtime.config import DeepSpeedConfig

        yield DeepSpeedConfig


def test_there_are_shipped_configurations():
    names = ["zero1", "zero2", "zero3", "zero3_offload", "zero3_offload_optimizer", "zeropp"]
    assert [file.stem for file in SHIPPED] == names
    text = (SHIPPED[0].parent / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"**{name}.json**" not in text] == [], "each has its paragraph"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_deepspeed_accepts_every_shipped_configuration_as_we_complete_it(deepspeed_reads, file, bf16):
    ours = training_ds_config(read_ds_config(str(file)), ranks=1, max_grad_norm=1.0, bf16=bf16)
    theirs = deepspeed_reads(ours)
    assert theirs.zero_config.stage == {"zero1": 1, "zero2": 2}.get(file.stem, 3)
    assert theirs.gradient_clipping == 1.0
    assert theirs.gradient_accumulation_steps == 1
    assert theirs.bfloat16_config.enabled is bf16
    offloads = "offload" in file.name
    assert (theirs.zero_config.offload_optimizer is not None) == offloads == uses_cpu_optimizer(ours)
    assert (theirs.zero_config.offload_param is not None) == (file.stem == "zero3_offload")
    assert theirs.zero_config.zero_hpz_partition_size == (8 if file.stem == "zeropp" else 1)


@pytest.mark.parametrize("bf16", [False, True])
def test_deepspeed_accepts_the_configuration_of_a_frozen_reference(deepspeed_reads, bf16):
    theirs = deepspeed_reads(frozen_ds_config(1, bf16))
    assert theirs.zero_config.stage == 3 and theirs.bfloat16_config.enabled is bf16


def test_deepspeed_would_notice_a_misspelt_key(deepspeed_reads):
    sharding = {"zero_optimization": {"stage": 3, "overlap_com": False}}
    with pytest.raises(ValueError, match="overlap_com"):
        deepspeed_reads(training_ds_config(sharding, 1, 1.0, bf16=False))
