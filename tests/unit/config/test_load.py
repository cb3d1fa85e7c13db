"""YAML and overrides -> Config, and every message of a configuration that could not run."""

import ast
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml

from mrpo_ds.config import schema
from mrpo_ds.config.load import load_config, save_config, to_dict
from mrpo_ds.config.schema import Config
from mrpo_ds.errors import ConfigError


def message_of(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_the_least_configuration_has_the_documented_defaults(load):
    config = load()
    assert config.model.path == "models/policy"
    assert [reference.name for reference in config.references] == ["one", "two"]
    assert config.topology.placement == "served" and config.topology.policy == 1
    assert config.train.batch_size == 64 and config.train.learning_rate == 5e-7
    assert config.loss.name == "mrpo" and config.loss.options.beta == 0.1
    assert config.data.train[0].adapter is None and config.data.eval == []


def test_the_runs_of_one_file_are_one_group_of_wandb_unless_something_says_otherwise(load, yaml_file, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert {load(f"train.seed={seed}").tracking.wandb.group for seed in (1, 2)} == {yaml_file.stem}
    assert load("tracking.wandb.group=ablation").tracking.wandb.group == "ablation"
    assert load("tracking.wandb.group=''").tracking.wandb.group == ""
    saved = yaml_file.with_name("config.yaml")
    save_config(load(), saved)
    assert load_config(str(saved)).tracking.wandb.group == yaml_file.stem
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep")
    assert load().tracking.wandb.group is None


def test_the_configuration_is_frozen(load):
    with pytest.raises(FrozenInstanceError):
        load().train.seed = 1


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.learning_rate=1e-6", lambda c: c.train.learning_rate, 1e-6),
        ("train.seed=7", lambda c: c.train.seed, 7),
        ("train.micro_batch_size=null", lambda c: c.train.micro_batch_size, None),
        ("train.max_grad_norm=inf", lambda c: c.train.max_grad_norm, float("inf")),
        ("model.gradient_checkpointing=false", lambda c: c.model.gradient_checkpointing, False),
        ("model.path=a=b", lambda c: c.model.path, "a=b"),
        ("references.0.path=models/other", lambda c: c.references[0].path, "models/other"),
        ("references.1.dtype=fp32", lambda c: c.references[1].dtype, "fp32"),
        ("data.train.0.limit=5", lambda c: c.data.train[0].limit, 5),
        ("data.eval=[{source: held.jsonl}]", lambda c: c.data.eval[0].source, "held.jsonl"),
        ("topology.references={two: 3}", lambda c: c.topology.references, {"two": 3}),
        ("topology.references.one=2", lambda c: c.topology.references, {"one": 2}),
        ("loss.weights=[0.25,0.75]", lambda c: c.loss.options.weights, [0.25, 0.75]),
        ("loss.eps_max=1", lambda c: c.loss.options.eps_max, 1.0),
        ("tracking.wandb.mode=offline", lambda c: c.tracking.wandb.mode, "offline"),
        ("output_dir=${model.path}/run", lambda c: c.output_dir, "models/policy/run"),
    ],
)
def test_an_override_replaces_one_setting_and_nothing_else(load, override, read, value):
    default, changed = load(), load(override)
    assert read(changed) == value
    section = override.partition("=")[0].partition(".")[0]
    others = [item.name for item in fields(Config) if item.name != section]
    assert all(getattr(changed, name) == getattr(default, name) for name in others)


def test_later_overrides_win_and_the_yaml_file_stays_as_it_is(load, yaml_file):
    before = yaml_file.read_text()
    assert load("train.seed=1", "train.seed=2").train.seed == 2
    assert yaml_file.read_text() == before


def test_numbers_that_yaml_reads_as_text_are_numbers_where_the_schema_has_numbers(load, yaml_file):
    yaml_file.write_text(yaml_file.read_text() + "train: {learning_rate: 5e-7, batch_size: '8'}\n")
    config = load()
    assert (config.train.learning_rate, config.train.batch_size) == (5e-7, 8)


def test_another_loss_brings_its_own_options(load):
    options = load("loss={name: dpo, label_smoothing: 0.1}").loss.options
    assert type(options).__module__ == "mrpo_ds.losses.dpo" and options.label_smoothing == 0.1


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("modl.path=x", "modl", "model"),
        ("output_dri=x", "output_dri", "output_dir"),
        ("model.pth=x", "model.pth", "path"),
        ("train.batchsize=8", "train.batchsize", "batch_size"),
        ("references.1.paht=x", "references[1].paht", "path"),
        ("data.max_lenght=9", "data.max_lenght", "max_length"),
        ("data.train.0.adaptor=pairs", "data.train[0].adaptor", "adapter"),
        ("tracking.wandb.mod=offline", "tracking.wandb.mod", "mode"),
        ("loss.bta=1", "loss.bta", "beta"),
        ("loss.eps_maximum=1", "loss.eps_maximum", "eps_max"),
    ],
)
def test_an_unknown_key_at_any_depth_is_named_in_full_with_the_nearest_one(load, override, key, nearest):
    assert message_of(load, override) == f"{key}: unknown key; did you mean '{nearest}'?"


def test_an_unknown_key_that_is_near_nothing_lists_what_there_is(load):
    known = "every_steps, offline, samples, suite, suite_batch_size, suite_chat_template, suite_dtype, suite_limit"
    assert message_of(load, "evaluate.zzz=1") == f"evaluate.zzz: unknown key; allowed: {known}."


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=abc", "train.batch_size is 'abc'; allowed: a whole number."),
        ("train.batch_size=1.5", "train.batch_size is 1.5; allowed: a whole number."),
        ("train.batch_size=null", "train.batch_size is None; allowed: a whole number."),
        ("train.micro_batch_size=all", "train.micro_batch_size is 'all'; allowed: a whole number or null."),
        ("train.seed=true", "train.seed is True; allowed: a whole number."),
        ("train.learning_rate=fast", "train.learning_rate is 'fast'; allowed: a number."),
        ("model.gradient_checkpointing=maybe", "model.gradient_checkpointing is 'maybe'; allowed: true | false."),
        ("model.path=null", "model.path is None; allowed: text."),
        ("output_dir=", "output_dir is None; allowed: text."),
        ("model.path.x=3", "model.path is {'x': 3}; allowed: text."),
        ("model.activation_offload=cpu", "model.activation_offload is 'cpu'; allowed: true | false."),
        ("train.dry_run=auto", "train.dry_run is 'auto'; allowed: true | false or null."),
        ("references.0.batch_tokens=many", "references[0].batch_tokens is 'many'; allowed: a whole number."),
        ("data.train.0.limit=x", "data.train[0].limit is 'x'; allowed: a whole number or null."),
        ("topology.references=[1]", "topology.references is [1]; allowed: a mapping of names to whole numbers."),
        ("topology.references.one=x", "topology.references is {'one': 'x'}; allowed: a mapping of names to whole num"),
        ("tracking.plots=5.5", "tracking.plots is 5.5; allowed: true | false."),
        (
            "tracking.wandb=off",
            "tracking.wandb is False; allowed: a mapping (mode, project, entity, group, name, log_model).",
        ),
        ("evaluate=5", "evaluate is 5; allowed: a mapping (every_steps, suite, suite_limit, suite_batch_size, "),
        ("data=x", "data is 'x'; allowed: a mapping (train, eval, "),
        ("references=x", "references is 'x'; allowed: a list of mappings (name, path, "),
        ("references=null", "references is None; allowed: a list of mappings (name, path, "),
        ("references.0=x", "references[0] is 'x'; allowed: a mapping (name, path, "),
        ("loss.beta=abc", "loss.beta is 'abc'; allowed: a number."),
        ("loss.virtual_ref=[1]", "loss.virtual_ref is [1]; allowed: text."),
        ("loss=mrpo", "loss is 'mrpo'; allowed: a mapping with a name, for example {name: mrpo, beta: 0.1}."),
        ("loss.name=null", "loss is {'name': None}; allowed: a mapping with a name"),
    ],
)
def test_a_wrong_type_is_told_with_its_full_key_its_value_and_what_is_allowed(load, override, expected):
    assert message_of(load, override).startswith(expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.weights=[0.3,0.6]", "loss.weights is [0.3, 0.6]; allowed: arwc | uniform | a list of numbers >= 0 that"),
        ("loss.weights=[1]", "references is ['one', 'two']; allowed: exactly 1 for loss.weights=[1]."),
        ("loss.weights=none", "loss.weights is 'none'; allowed: arwc | uniform"),
        ("loss.eps_max=-1", "loss.eps_max is -1.0; allowed: >= 0."),
        ("loss.beta=0", "loss.beta is 0.0; allowed: > 0."),
        ("loss.beta=nan", "loss.beta is nan; allowed: > 0."),
        ("loss.ctro=adaptve", "loss.ctro is 'adaptve'; allowed: adaptive | fixed | none."),
    ],
)
def test_options_of_a_loss_are_checked_like_the_rest(load, override, expected):
    assert message_of(load, override).startswith(expected)


def test_a_misspelt_loss_is_answered_with_the_nearest_one(load):
    message = message_of(load, "loss.name=mrp")
    assert message.startswith("loss.name is 'mrp'; allowed: ") and message.endswith("Did you mean 'mrpo'?")
    assert " | mrpo" in message


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("model: {path: models/policy}", "model.path"),
        ("output_dir: runs/test", "output_dir"),
        ("name: one, ", "references[0].name"),
        (", path: models/two", "references[1].path"),
        ("source: train.jsonl", "data.train[0].source"),
    ],
)
def test_a_missing_mandatory_key_is_named_with_how_to_give_it(load, yaml_file, line, missing):
    text = yaml_file.read_text()
    assert line in text
    yaml_file.write_text(text.replace(line, ""))
    assert message_of(load).startswith(f"{missing} is missing; give it in the YAML or as {missing}=")


def test_a_configuration_without_a_loss_is_refused(load, yaml_file):
    yaml_file.write_text(yaml_file.read_text().replace("loss: {name: mrpo}", ""))
    assert message_of(load).startswith("loss is None; allowed: a mapping with a name")


@pytest.mark.parametrize("override", ["train.seed", "=7", "seed", ""])
def test_an_override_without_an_equals_sign_is_refused_with_an_example(load, override):
    expected = f"override {override!r} is not key=value, for example train.learning_rate=1e-6."
    assert message_of(load, override) == expected


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("references.5.path=x", "names a list entry that the YAML does not have"),
        ("references.x.path=y", "Index 'x' (str) is not an int"),
        ("train.batch_size=[", "cannot be applied: while parsing a flow node did not find expected node content"),
        ("model=[1]", "cannot be applied"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted(load, override, says):
    message = message_of(load, override)
    assert message.startswith(f"override {override!r} ") and says in message


@pytest.mark.parametrize(
    ("value", "says"),
    [("${oc.env:NOT_THERE_AT_ALL}", "'NOT_THERE_AT_ALL' not found"), ("${no.such}", "'no.such' not found")],
)
def test_an_interpolation_of_something_absent_names_the_key(load, value, says):
    message = message_of(load, f"model.path={value}")
    assert message.startswith("model.path: ") and says in message


def test_a_missing_file_is_named(tmp_path):
    message = message_of(load_config, str(tmp_path / "no.yaml"))
    assert str(tmp_path / "no.yaml") in message and "does not exist" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"model: {path: x\nloss: y", "cannot be read"),
        (b"a: 1\na: 2\n", "cannot be read"),
        (b"\xff\xfe\xfa\x00", "cannot be read"),
        (b"- 1\n- 2\n", "is not a mapping of sections"),
        (b"just words", "just words: unknown key; allowed: checkpoint, data"),
        (b"", "model.path is missing"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_refused_in_one_line(yaml_file, content, says):
    yaml_file.write_bytes(content)
    message = message_of(load_config, str(yaml_file))
    assert says in message
    assert str(yaml_file) in message or not says.startswith(("cannot", "is not"))


def test_a_directory_is_no_configuration(tmp_path):
    assert "cannot be read" in message_of(load_config, str(tmp_path))


# ---- what is written -------------------------------------------------------------------------------------------------

ODD = (
    "loss.weights=[0.25,0.75]",
    "train.micro_batch_size=4",
    "train.learning_rate=3.3e-07",
    "train.max_grad_norm=inf",
    "topology.references={two: 3}",
    "tracking.wandb.name='007'",
    "model.revision='1e5'",
    'data.train.0.source="a b: #c, {d}"',
    "output_dir='null'",
)


@pytest.mark.parametrize("overrides", [(), ODD, ("loss={name: dpo}", "references=[{name: one, path: p}]")])
def test_a_saved_configuration_loads_as_the_same_one(load, tmp_path, overrides):
    config = load(*overrides)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_the_saved_file_is_plain_yaml_with_every_setting_in_it(load, tmp_path):
    config = load()
    save_config(config, tmp_path / "config.yaml")
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert values == to_dict(config)
    assert set(values["train"]) == {item.name for item in fields(config.train)}
    assert values["loss"]["name"] == "mrpo" and values["loss"]["ctro"] == "adaptive"


def test_every_setting_is_documented_under_its_line():
    for section in ast.parse(Path(schema.__file__).read_text(encoding="utf-8")).body:
        if isinstance(section, ast.ClassDef) and section.name != "Config":  # its fields are the sections
            for line, below in zip(section.body, [*section.body[1:], None], strict=True):
                if isinstance(line, ast.AnnAssign):
                    said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    assert said, f"{section.name}: {ast.unparse(line)}"


SECRET = "s3cr3t-of-the-test"


@pytest.mark.parametrize("name", ["MY_API_KEY", "HF_TOKEN", "some_secret", "DB_PASSWORD"])
@pytest.mark.parametrize(
    "override",
    ["tracking.wandb.group=${oc.env:%s}", "data.train.0.source=hub-${oc.env:%s}-x", "model.path='%s'"],
)
def test_a_secret_of_the_environment_never_reaches_the_resolved_configuration(
    load, tmp_path, monkeypatch, name, override
):
    monkeypatch.setenv(name, SECRET)
    config = load(override % (SECRET if "'" in override else name))
    assert SECRET not in str(to_dict(config)) and "***" in str(to_dict(config))
    save_config(config, tmp_path / "config.yaml")
    assert SECRET not in (tmp_path / "config.yaml").read_text()
    assert SECRET in str(config), "the run itself works with the value"


def test_variables_that_are_no_secrets_are_not_masked(load, monkeypatch):
    monkeypatch.setenv("DATA_FOLDER", "some/longer/folder")
    monkeypatch.setenv("SHORT_KEY", "one")  # would mask half of the file
    values = to_dict(load("data.train.0.source=${oc.env:DATA_FOLDER}/x.jsonl"))
    assert values["data"]["train"][0]["source"] == "some/longer/folder/x.jsonl"
    assert values["references"][0]["name"] == "one"


def test_a_mistake_outside_the_loss_is_told_before_torch_is_imported(yaml_file):
    program = (
        "import sys\nfrom mrpo_ds.config.load import load_config\n"
        f"try:\n    load_config({str(yaml_file)!r}, ['train.batch_size=x'])\nexcept Exception as error: print(error)\n"
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'wandb') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert re.fullmatch(r"train\.batch_size is 'x'; .*\n\[\]\n", answer.stdout)
