"""Every objective in every variant through `mrpo-ds train`, from the configurations in launch/configs.

Tiny models, eight prompts a step and the same eight each time, so that a loss that has a gradient has to fall. The
options under test are what launch/configs says plus what a variant changes; models, rows and sizes are the test's.
"""

import json
import math
from copy import deepcopy
from typing import Any

import pytest
import yaml

from mrpo_ds.registry import names
from tests.conftest import Run, Runs
from tests.support import ROOT, base_config, without_clock, write_jsonl

Settings = dict[str, Any]

STEPS = 8
SAME = 1e-5
"""Most that two runs' losses may differ when only the sharding does, in fp32."""

# name: (objective, options that differ from launch/configs/<objective>.yaml)
VARIANTS: dict[str, tuple[str, Settings]] = {
    "dpo": ("dpo", {}),
    "dpo-hinge": ("dpo", {"comparison": "hinge"}),
    "dpo-smoothed": ("dpo", {"label_smoothing": 0.1}),
    "dpo-reference_free": ("dpo", {"reference_free": True}),
    "ipo": ("ipo", {}),
    "ipo-sums": ("ipo", {"length_norm": False}),
    "kto": ("kto", {}),
    "kto-pairs": ("kto", {"view": "pair"}),
    "kto-pair_kl": ("kto", {"kl": "pair", "view": "pair"}),
    "cpo": ("cpo", {}),
    "cpo-sum": ("cpo", {"nll_reduction": "sum"}),
    "cpo-seq_mean": ("cpo", {"nll_reduction": "seq_mean"}),
    "cpo-hinge": ("cpo", {"comparison": "hinge"}),
    "orpo": ("orpo", {}),
    "orpo-full": ("orpo", {"nll": "full"}),
    "simpo": ("simpo", {}),
    "simpo-gamma": ("simpo", {"gamma_beta_ratio": None, "gamma": 0.5}),
    "simpo-sft": ("simpo", {"sft_weight": 0.5}),
    "sft": ("sft", {}),
    "sft-seq_mean": ("sft", {"reduction": "seq_mean"}),
    "sft-on_prompt": ("sft", {"train_on_prompt": True}),
    "tpo": ("tpo", {}),
    "tpo-alpha_0": ("tpo", {"alpha": 0.0}),
    "tpo-sum": ("tpo", {"nll_reduction": "sum"}),
    "tpo-seq_mean": ("tpo", {"nll_reduction": "seq_mean"}),
    "tpo-hinge": ("tpo", {"comparison": "hinge"}),
    "tpo-ipo": ("tpo", {"comparison": "ipo"}),
    "tpo_l": ("tpo", {"variant": "tpo_l", "beta": 2.0, "gamma": 1.0}),
    "mdpo": ("mdpo", {}),
    "mdpo-two_decimals": ("mdpo", {"weight_rounding": "two_decimals"}),
    "mdpo-adjacent": ("mdpo", {"pairs": "adjacent"}),
    "mdpo-adjacent-sum": ("mdpo", {"pairs": "adjacent", "reduce": "sum"}),
    "mdpo-all": ("mdpo", {"pairs": "all"}),
    "mdpo-top_vs_rest": ("mdpo", {"pairs": "top_vs_rest"}),
    "mdpo-two_references": ("mdpo", {"references": 2}),
    "mppo-point_ce": ("mppo", {"variant": "point_ce", "view": "point"}),
    "mppo-point_mse": ("mppo", {"variant": "point_mse", "view": "point"}),
    "mppo-pair_single": ("mppo", {"variant": "pair_single"}),
    "mppo-pair_single-worst": ("mppo", {"variant": "pair_single", "negative": "worst"}),
    "mppo-pair_mns": ("mppo", {"variant": "pair_mns"}),
    "mppo": ("mppo", {}),
    "mppo-pair_mcs": ("mppo", {"variant": "pair_mcs"}),
    "mppo-pair_mcs-one": ("mppo", {"variant": "pair_mcs", "combinations": "one"}),
    "mppo-pair_mcm": ("mppo", {"variant": "pair_mcm"}),
    "mppo-list_mle": ("mppo", {"variant": "list_mle"}),
    "mppo-anchored": ("mppo", {"anchor": "virtual", "references": 2}),
    "mrpo": ("mrpo", {}),
    "mrpo-geometric": ("mrpo", {"virtual_ref": "geometric", "weights": "uniform", "ctro": "fixed"}),
    "mrpo-arithmetic": ("mrpo", {"virtual_ref": "arithmetic", "ctro": "none"}),
    "mrpo-code_swapped": ("mrpo", {"arwc_assignment": "code_swapped"}),
    "multi_ref_dpo": ("multi_ref_dpo", {}),
    "multi_ref_dpo-arwc": ("multi_ref_dpo", {"weights": "arwc"}),
    "multi_ref_dpo-list": ("multi_ref_dpo", {"weights": [0.7, 0.3]}),
    "mean_ref": ("mean_ref", {}),
    "mean_ref-geometric": ("mean_ref", {"virtual_ref": "geometric"}),
}
RANDOM = ("mppo-pair_single", "mppo-pair_mcs-one")
"""Variants whose steps compare responses drawn at random."""
TOKEN_MEAN = ("sft", "tpo", "cpo", "orpo", "orpo-full", "sft-on_prompt")
"""Variants with a mean over the tokens of a step, whose equality under sharding is tested."""
MORE = {"dpo-reference_free", "kto-pairs", "cpo-seq_mean", "simpo-sft", "sft-seq_mean", "sft-on_prompt", "tpo_l"}
MORE |= {"mdpo-all", "mdpo-two_references", "mppo-point_ce", "mppo-pair_mcs-one", "mppo-anchored", "mrpo-geometric"}
MORE |= {"multi_ref_dpo-list"}
ALWAYS = {objective for objective, _ in VARIANTS.values()} | MORE
"""Variants of every test run: what launch/configs ships, and one for each further way through a step."""

COLOURS = ["red", "green", "blue", "white", "black", "amber", "violet", "grey"]


def ranked_rows(count: int, longest: int = 1) -> list[Settings]:
    """Prompts with three or four scored responses, in no order; up to `longest` times as long as the shortest."""
    rows = []
    for index in range(count):
        before, after = COLOURS[index % 8], COLOURS[(index + 1) % 8]
        more = f" It is {after}." * (longest * index // count)
        responses = ["I do not know.", f"It is {after}.{more}", f"Not {before}.", f"{after}, maybe"][: 4 - index % 2]
        scores = [1, 9.5, 6, 4][: len(responses)]
        rows.append({"prompt": f"{index}: what follows {before}?", "responses": responses, "scores": scores})
    return rows


def labelled_rows(count: int) -> list[Settings]:
    """Single answers with a label, as for KTO."""
    rows = []
    for index in range(count):
        answer = f"It is {COLOURS[(index + 1) % 8]}." if index % 3 else "I do not know" + " at all" * (index % 5)
        question = f"{index}: what follows {COLOURS[index % 8]}?"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns, "label": bool(index % 3)})
    return rows


def configure(runs: Runs, objective: str, options: Settings, rows: int = 8, longest: int = 1) -> Settings:
    """launch/configs/<objective>.yaml with the options of a variant, on tiny models, small rows and one rank.

    options: those of the loss, and with the names view and references (how many) what else a variant changes.
    """
    config: Settings = yaml.safe_load((ROOT / "launch" / "configs" / f"{objective}.yaml").read_text(encoding="utf-8"))
    options = dict(options)
    config["data"]["view"] = view = options.pop("view", config["data"]["view"])
    tiny = base_config(runs.root, options.pop("references", len(config.get("references", []))))
    config["loss"] |= options
    source = runs.root / "data" / f"ranked-{rows}-{longest}.jsonl"
    if not source.exists():
        write_jsonl(source, ranked_rows(rows, longest))
    config["data"] |= {"train": [{"source": str(source), "adapter": "ranked"}], "eval": [], "eval_view": "auto"}
    examples = {"unpaired": 2 * rows, "point": 3 * rows + (rows + 1) // 2}.get(view, rows)
    config["train"] |= {"batch_size": examples, "micro_batch_size": None, "epochs": STEPS, "max_steps": STEPS}
    rate = 1e-2 if objective == "mppo" else 2e-3  # probabilities of an untrained model are small, and differ by less
    config["train"] |= {"learning_rate": rate, "warmup_ratio": 0.0, "scheduler": "constant"}
    for section in ("model", "references", "deepspeed", "checkpoint", "evaluate", "tracking"):
        config[section] = tiny[section]
    config["topology"] = {"policy": 1, "placement": "colocated", "timeout_seconds": 60}
    return config


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics]


def of_the_matrix(*case: Any, always: bool) -> Any:
    """A case, which is one of the matrix unless it is always tested."""
    return pytest.param(*case, marks=[] if always else pytest.mark.matrix)


EACH_VARIANT = pytest.mark.parametrize("name", [of_the_matrix(name, always=name in ALWAYS) for name in VARIANTS])


# ---- every variant learns --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variants(warm_runs: Runs) -> Any:
    """Name of a variant -> its run. Those of every test run begin at once."""
    configs = {name: configure(warm_runs, *variant) for name, variant in VARIANTS.items()}
    warm_runs.begin({name: config for name, config in configs.items() if name in ALWAYS})
    return lambda name: warm_runs.train(name, configs[name])


def test_no_objective_and_no_configuration_is_forgotten() -> None:
    assert {objective for objective, _ in VARIANTS.values()} == set(names("mrpo_ds.losses"))
    for objective in names("mrpo_ds.losses"):
        assert (ROOT / "launch" / "configs" / f"{objective}.yaml").is_file()
        assert objective in VARIANTS and not VARIANTS[objective][1], "the shipped options are a variant too"


@EACH_VARIANT
def test_the_loss_falls_on_eight_prompts(variants: Any, name: str) -> None:
    trajectory = losses(variants(name))
    print(f"{name}: {', '.join(f'{loss:.4f}' for loss in trajectory)}")
    assert len(trajectory) == STEPS and all(math.isfinite(loss) for loss in trajectory)
    first, last = trajectory[0], trajectory[-1]
    if name in RANDOM:
        first, last = sum(trajectory[:3]) / 3, sum(trajectory[-3:]) / 3
    assert last < 0.95 * first


# ---- the same under any sharding -------------------------------------------------------------------------------------

SHARDINGS: dict[str, Settings] = {
    "whole": {},
    "in_ones": {"micro_batch_size": 1},
    "two_ranks": {"policy": 2, "micro_batch_size": 2},
}


TOKEN_MEANS = [(name, sharding) for name in TOKEN_MEAN for sharding in SHARDINGS if sharding != "whole"]
TOKEN_MEANS_ALWAYS = [("sft", "in_ones"), ("sft", "two_ranks"), ("tpo", "two_ranks"), ("orpo-full", "in_ones")]


def sharded(config: Settings, policy: int = 1, micro_batch_size: int | None = None) -> Settings:
    """The configuration on that many policy ranks, with at most that many prompts a forward."""
    config = deepcopy(config)
    config["topology"]["policy"] = policy
    config["train"]["micro_batch_size"] = micro_batch_size
    return config


@pytest.fixture(scope="module")
def token_means(warm_runs: Runs) -> Any:
    """<variant>/<sharding> -> its run, over eight prompts whose responses are of very different lengths."""
    configs = {}
    for name in TOKEN_MEAN:
        config = configure(warm_runs, *VARIANTS[name], longest=8)
        configs |= {f"{name}-{sharding}": sharded(config, **how) for sharding, how in SHARDINGS.items()}
    configs["sft-seq_mean-whole"] = configure(warm_runs, *VARIANTS["sft-seq_mean"], longest=8)
    pairs = [(name, how) for name, sharding in TOKEN_MEANS_ALWAYS for how in ("whole", sharding)]
    warm_runs.begin({f"{name}-{how}": configs[f"{name}-{how}"] for name, how in [*pairs, ("sft-seq_mean", "whole")]})
    return lambda name: warm_runs.train(name, configs[name])


@pytest.mark.parametrize(
    ("name", "sharding"), [of_the_matrix(*case, always=case in TOKEN_MEANS_ALWAYS) for case in TOKEN_MEANS]
)
def test_a_mean_over_tokens_is_one_over_the_whole_step(token_means: Any, name: str, sharding: str) -> None:
    ours, theirs = token_means(f"{name}-whole"), token_means(f"{name}-{sharding}")
    assert losses(theirs) == pytest.approx(losses(ours), abs=SAME)
    for metric in ("nll_loss", "grad_norm", "rewards/margins", "num_tokens"):
        expected = [row[metric] for row in ours.metrics]
        if None in expected:  # single responses have no margin
            assert [row[metric] for row in theirs.metrics] == expected
        else:
            assert [row[metric] for row in theirs.metrics] == pytest.approx(expected, rel=1e-4, abs=SAME)


def test_the_lengths_are_different_enough_to_tell(token_means: Any) -> None:
    """A mean of the responses' own means, which is what sharding could turn a token mean into, is another number."""
    assert abs(losses(token_means("sft-seq_mean-whole"))[0] - losses(token_means("sft-whole"))[0]) > 0.02


KTO_MATRIX = ("kto-8-in_ones", "kto-4-two_ranks")


@pytest.fixture(scope="module")
def kto_runs(warm_runs: Runs) -> Any:
    """KTO on nine labelled answers, eight and four a step: each epoch ends with a step of one."""
    source = write_jsonl(warm_runs.root / "labelled.jsonl", labelled_rows(9))
    configs = {}
    for batch_size in (8, 4):
        config = configure(warm_runs, "kto", {})
        config["data"]["train"] = [{"source": str(source), "adapter": "kto"}]
        config["train"] |= {"batch_size": batch_size, "epochs": 4, "max_steps": 6}
        configs |= {f"kto-{batch_size}-{name}": sharded(config, **how) for name, how in SHARDINGS.items()}
    configs["kto-served"] = deepcopy(configs["kto-8-two_ranks"])
    configs["kto-served"]["topology"] |= {"placement": "served", "run_ahead": 2}
    warm_runs.begin({name: config for name, config in configs.items() if name not in KTO_MATRIX})
    return lambda name: warm_runs.train(name, configs[name])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        of_the_matrix(ours, theirs, always=theirs not in KTO_MATRIX)
        for ours, theirs in (
            ("kto-8-whole", "kto-8-in_ones"),
            ("kto-8-whole", "kto-8-two_ranks"),
            ("kto-4-whole", "kto-4-in_ones"),
            ("kto-4-whole", "kto-4-two_ranks"),
            ("kto-8-whole", "kto-served"),
        )
    ],
)
def test_kto_is_the_same_however_a_step_is_cut(kto_runs: Any, ours: str, theirs: str) -> None:
    """Its KL term is a mean over the step, which neither one prompt a forward nor a step of one prompt changes."""
    ours, theirs = kto_runs(ours), kto_runs(theirs)
    prompts = [row["prompts"] for row in ours.metrics]
    assert prompts[:3] in ([8, 1, 8], [4, 4, 1]) and [row["prompts"] for row in theirs.metrics] == prompts
    assert losses(theirs) == pytest.approx(losses(ours), abs=SAME)
    for metric in ("kl", "grad_norm", "rewards/chosen"):
        expected = [row[metric] or 0.0 for row in ours.metrics]
        assert [row[metric] or 0.0 for row in theirs.metrics] == pytest.approx(expected, rel=1e-4, abs=SAME)
    assert max(row["kl"] for row in ours.metrics) > 0.01, "the policy has moved, or the equality says little"


# ---- what is logged --------------------------------------------------------------------------------------------------

COMPARED = ("chosen", "rejected", "margins", "accuracies", "ties", "top1", "pair_accuracies", "pair_margins")
EVERYWHERE = {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "prompts", "dropped"}
EVERYWHERE |= {f"rewards/{name}" for name in COMPARED} | {"logps/chosen", "logps/rejected", "logps/accuracies"}
OF_A_REFERENCE = {f"ref/ref1/{name}" for name in ("logps/chosen", "logps/rejected", "margin", "accuracy")}
SINGLE = ("kto", "sft", "sft-seq_mean", "sft-on_prompt", "mppo-point_ce", "mppo-point_mse")
"""Variants that see one response at a time."""
NOT_OF_SINGLE = {f"rewards/{name}" for name in COMPARED[1:]} | {"logps/rejected", "logps/accuracies"}
NOT_OF_SINGLE |= {"ref/ref1/logps/rejected", "ref/ref1/margin", "ref/ref1/accuracy"}
OWN = {
    "kto": {"kl"},
    "orpo": {"log_odds_ratio"},
    "tpo": {"logps/gold"},
    "mdpo": {"score_ties", "vref/logps/chosen", "ref/ref1/weight"},
    "mppo": {"score_ties"},
    "mppo-anchored": {"score_ties", "vref/logps/chosen", "ref/ref2/clip_fraction", "ctro/eps_chosen"},
    "mrpo": {"vref/logps/chosen", "vref/logps/rejected", "vref/offset", "ref/ref2/weight", "ref/ref2/clip_low"},
    "multi_ref_dpo": {"ref/ref2/weight", "ref/ref2/clip_high", "ctro/eps_rejected"},
    "mean_ref": {"rewards_ref1/margins", "vref/offset"},
}


@EACH_VARIANT
def test_metrics_have_the_same_names_for_every_objective(variants: Any, name: str) -> None:
    run = variants(name)
    token_mean = VARIANTS[name][0] in ("sft", "orpo") or name in ("cpo", "cpo-hinge", "tpo", "tpo-hinge", "tpo-ipo")
    token_mean |= name in ("tpo_l", "simpo-sft")
    references = json.loads((run.directory / "summary.json").read_text())["references"]
    for row in run.metrics:
        assert row.keys() >= EVERYWHERE | OWN.get(name, set()) | (OF_A_REFERENCE if references else set())
        assert ("nll_loss" in row) == (token_mean and name != "sft-seq_mean")
        missing = {metric for metric, value in row.items() if value is None}
        if name not in SINGLE:
            assert not missing, "a prompt with several responses has all of them"
        else:
            assert missing <= NOT_OF_SINGLE, "these compare two responses of a prompt"
    assert all(row["dropped"] == 0 for row in run.metrics)


def test_learned_rankings_show_in_the_metrics(variants: Any) -> None:
    """After eight steps on the same prompts the order of the responses is known by heart."""
    for name in ("dpo", "mdpo", "mdpo-all", "mrpo", "tpo"):
        last = variants(name).metrics[-1]
        assert last["rewards/accuracies"] == last["rewards/top1"] == 1.0
        assert last["rewards/pair_accuracies"] > 0.9 and last["rewards/margins"] > last["rewards/pair_margins"] * 0.99
    first = variants("mdpo").metrics[0]  # the policy is the reference: only the last bits of two packings differ
    assert abs(first["rewards/margins"]) < 1e-5 < last["rewards/margins"]


# ---- rows that cannot be used ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flawed(warm_runs: Runs) -> Settings:
    """MDPO over eight good rows and three others: all scores equal, no score, one response without a score."""
    good = ranked_rows(8)
    tied = {**good[0], "prompt": "tied?", "scores": [5, 5, 5, 5]}
    unscored = {**good[0], "prompt": "unscored?", "scores": [None] * 4}
    partly = {**good[0], "prompt": "partly?", "scores": [1, 9.5, None, 4]}
    source = write_jsonl(warm_runs.root / "flawed.jsonl", [*good, tied, unscored, partly])
    config = configure(warm_runs, "mdpo", {})
    config["data"] |= {"train": [{"source": str(source), "adapter": "ranked"}]}
    config["train"] |= {"batch_size": 9, "max_steps": 2}
    return config


def test_tied_and_unscored_rows_are_refused_with_the_first_of_each(warm_runs: Runs, flawed: Settings) -> None:
    run = warm_runs.train("flawed", flawed, code=2)
    said = run.process.stderr
    assert "2 of 11 rows (18.18%) cannot be used, more than data.max_dropped_fraction=0.01 allows" in said
    assert "flawed.jsonl row 9: " in said and "flawed.jsonl row 10: " in said and "Traceback" not in said


def test_tied_and_unscored_rows_are_counted_when_they_are_allowed(warm_runs: Runs, flawed: Settings) -> None:
    config = deepcopy(flawed)
    config["data"] |= {"max_dropped_fraction": 0.2, "max_left_out_fraction": 0.2}
    run = warm_runs.train("flawed-allowed", config)
    report = json.loads((run.directory / "summary.json").read_text())["data"]["train"]
    assert report["dropped"] == {"tied scores": 1, "missing score": 1}
    assert report["left_out_responses"] == {"missing score": 1}
    assert (report["rows"], report["kept"], report["responses_per_prompt"]) == (11, 9, 4)
    assert [row["prompts"] for row in run.metrics] == [9, 9] and [row["dropped"] for row in run.metrics] == [0, 0]


# ---- the command as it is typed --------------------------------------------------------------------------------------


def test_the_typed_command_does_the_same_to_the_bit(runs: Runs, warm_runs: Runs, variants: Any) -> None:
    """The runs above skip the imports and our launcher, nothing else."""
    typed = runs.train("typed", configure(warm_runs, *VARIANTS["mdpo"]))
    assert without_clock(typed.metrics) == without_clock(variants("mdpo").metrics)
