"""What a dashboard shows, as data: sections of panels of metrics. The local page and the W&B workspace are made of it.

Metrics are named as W&B has them: train/ before those of metrics.jsonl, eval/ before those of evals.jsonl. In a
pattern, * stands for the name of a reference.
"""

from mrpo_ds.dashboard.panels import Line, Panel, Section

FRACTION = (0.0, 1.0)
"""Limits of what is a share."""


def _both(metric: str) -> tuple[Line, ...]:
    return Line(f"train/{metric}", "training"), Line(f"eval/{metric}", "evaluation")


def _sides(prefix: str, of: str = "") -> tuple[Line, ...]:
    return Line(f"{prefix}/chosen", f"{of}chosen"), Line(f"{prefix}/rejected", f"{of}rejected")


def _per_reference(metric: str, kind: str = "train") -> tuple[Line, ...]:
    return (Line(f"{kind}/ref/*/{metric}", "*"),)


def _one(metric: str, label: str) -> tuple[Line, ...]:
    return (Line(metric, label),)


PREFERENCE = Section(
    "preference",
    "Preference",
    (
        Panel("Loss", "mean per prompt", "Both fall; evaluation that rises alone is overfitting.", _both("loss")),
        Panel(
            "Preference accuracy",
            "share of pairs with the chosen ahead",
            "Rises above chance (0.5) on held-out pairs, not only in training.",
            _both("rewards/accuracies"),
            FRACTION,
            0.5,
        ),
        Panel(
            "Reward margin",
            "chosen - rejected reward",
            "Grows steadily; a training margin that runs away from evaluation is overfitting.",
            _both("rewards/margins"),
            mark=0.0,
        ),
        Panel(
            "Rewards",
            "implicit reward",
            "The two part; both far below 0 means that the chosen responses become less likely too.",
            _sides("train/rewards"),
            mark=0.0,
        ),
        Panel(
            "Log-probs of the policy",
            "nats per response",
            "The chosen stay about where they began while the rejected fall.",
            (*_sides("train/logps"), Line("train/logps/gold", "gold")),
        ),
        Panel(
            "Accuracy of the log-probs alone",
            "share of pairs with the chosen more likely",
            "Rises slowly: it compares the responses without any reference.",
            _both("logps/accuracies"),
            FRACTION,
            0.5,
        ),
        Panel(
            "Ties",
            "share",
            "Near 0 after the first steps; many mean that a few bits of precision decide.",
            (Line("train/rewards/ties", "equal rewards"), Line("train/score_ties", "equal scores in the data")),
            FRACTION,
        ),
        Panel(
            "Best response on top",
            "share of prompts",
            "Rises, more slowly than the accuracy of the outer pair.",
            _both("rewards/top1"),
            FRACTION,
        ),
        Panel(
            "Accuracy over all ordered pairs",
            "share of pairs",
            "Rises above chance (0.5).",
            _both("rewards/pair_accuracies"),
            FRACTION,
            0.5,
        ),
        Panel("Margin over all ordered pairs", "reward", "Grows steadily.", _both("rewards/pair_margins"), mark=0.0),
        Panel("Negative log-likelihood", "nats per token", "Falls, or stays where it began.", _both("nll_loss")),
        Panel("Drift (kl of kto)", "nats", "Stays small; it grows as everything moves away.", _both("kl")),
        Panel("Log odds ratio (orpo)", "log odds", "Rises above 0.", _both("log_odds_ratio"), mark=0.0),
        Panel(
            "Margin against RefM1 alone",
            "reward",
            "Grows with the margin against the mean of the references.",
            _both("rewards_ref1/margins"),
            mark=0.0,
        ),
    ),
)

REFERENCES = Section(
    "references",
    "References",
    (
        Panel(
            "Weight of each reference",
            "share of the virtual reference",
            "None stays near 0: a reference without weight only costs time.",
            _per_reference("weight"),
            FRACTION,
        ),
        Panel(
            "Clip fraction of each reference",
            "share of log-probs at a bound",
            "Below about 0.5; a reference that is always clipped says no more than which bound it is at.",
            _per_reference("clip_fraction"),
            FRACTION,
        ),
        Panel(
            "Which bound clips",
            "share of log-probs",
            "About as often from above as from below.",
            (Line("train/ref/*/clip_low", "*, lower"), Line("train/ref/*/clip_high", "*, upper")),
            FRACTION,
        ),
        Panel(
            "Margin of each reference",
            "chosen - rejected log-prob, nats",
            "Above 0 on average: the reference itself prefers the chosen.",
            _per_reference("margin"),
            mark=0.0,
        ),
        Panel(
            "Accuracy of each reference",
            "share of pairs with the chosen more likely",
            "Above chance (0.5); below it a reference pulls the wrong way.",
            _per_reference("accuracy"),
            FRACTION,
            0.5,
        ),
        Panel(
            "Trust region half-width",
            "share of RefM1's log-prob",
            "Away from 0: a width of 0 leaves RefM1 alone.",
            (Line("train/ctro/eps_chosen", "chosen"), Line("train/ctro/eps_rejected", "rejected")),
        ),
        Panel(
            "Virtual reference minus RefM1",
            "nats",
            "Away from 0, and small beside the log-probs: the other references count, within bounds.",
            _one("train/vref/offset", "mean over responses"),
            mark=0.0,
        ),
        Panel(
            "Log-probs of the virtual reference",
            "nats per response",
            "Of the size of the policy's at the start.",
            _sides("train/vref/logps"),
        ),
        Panel(
            "Log-probs of each reference",
            "nats per response",
            "Flat but for the rows: references do not learn.",
            _sides("train/ref/*/logps", "*, "),
        ),
    ),
)

OPTIMIZATION = Section(
    "optimization",
    "Optimization",
    (
        Panel("Gradient norm", "L2", "Stays within a power of ten; spikes fade.", _one("train/grad_norm", "norm")),
        Panel(
            "Learning rate",
            "per step",
            "Warms up, then decays as configured.",
            _one("train/learning_rate", "learning rate"),
            smooth=False,
        ),
        Panel(
            "Rows and steps left out",
            "count",
            "0: dropped rows had numbers that are not finite, skipped steps had such a gradient or loss.",
            (Line("train/dropped", "rows of the step"), Line("train/skipped_steps", "steps so far")),
            smooth=False,
        ),
    ),
)

PERFORMANCE = Section(
    "performance",
    "Performance",
    (
        Panel(
            "Throughput of the policy",
            "tokens per second",
            "Steady; it falls when the policy waits or pads.",
            _one("train/perf/tokens_per_second", "policy"),
        ),
        Panel("Step time", "seconds", "Steady.", _one("train/perf/seconds_per_step", "step")),
        Panel(
            "Policy waits for references",
            "seconds per step",
            "Near 0: the references run ahead.",
            _one("train/perf/reference_wait_seconds", "wait"),
        ),
        Panel(
            "Idle time of each reference",
            "seconds per step",
            "Above 0, if the policy is not to wait; a slow reference has none.",
            _per_reference("wait_seconds"),
        ),
        Panel(
            "Idle share of each reference",
            "share of its time",
            "Above 0, and far below 1: a reference that mostly idles could share its device.",
            _per_reference("idle_fraction"),
            FRACTION,
        ),
        Panel(
            "Peak memory of each reference",
            "GiB",
            "Flat after the first steps.",
            _per_reference("memory_gib"),
            smooth=False,
        ),
        Panel(
            "Scoring time of each reference",
            "seconds per step",
            "Below the step time.",
            _per_reference("score_seconds"),
        ),
        Panel("Throughput of each reference", "tokens per second", "Steady.", _per_reference("tokens_per_second")),
        Panel(
            "Read from the store",
            "share of the step's log-probs",
            "1 from the second epoch on, when a store is used.",
            _per_reference("stored_fraction"),
            FRACTION,
            smooth=False,
        ),
        Panel(
            "Model operations",
            "teraflop/s, all policy ranks",
            "Steady, and as high as the device allows.",
            _one("train/perf/model_tflops_per_second", "policy"),
        ),
        Panel(
            "MFU",
            "share of the devices' peak",
            "0.3 and more on GPUs, for models that fill them.",
            _one("train/perf/mfu", "policy"),
        ),
        Panel(
            "Peak memory of the first policy rank",
            "GiB",
            "Flat after the first steps; one that creeps up ends in a crash.",
            _one("train/perf/memory_gib", "peak"),
            smooth=False,
        ),
        Panel(
            "Tokens spared and wasted",
            "share",
            "Little padding; shared prompts are computed once.",
            (
                Line("train/perf/padding_fraction", "padding"),
                Line("train/perf/shared_fraction", "shared prompts"),
                Line("train/perf/recompute_fraction", "computed again in backward"),
            ),
            FRACTION,
        ),
    ),
)

EVALUATION = Section(
    "evaluation",
    "Evaluation",
    (
        Panel("Held-out rewards", "implicit reward", "The two part.", _sides("eval/rewards"), mark=0.0),
        Panel(
            "Held-out log-probs of the policy",
            "nats per response",
            "The chosen do not fall by much.",
            (*_sides("eval/logps"), Line("eval/logps/gold", "gold")),
        ),
        Panel(
            "Held-out ties and rows left out",
            "share; rows",
            "0.",
            (
                Line("eval/rewards/ties", "equal rewards"),
                Line("eval/score_ties", "equal scores in the data"),
                Line("eval/dropped", "rows left out"),
            ),
        ),
        Panel(
            "Held-out accuracy of each reference",
            "share of pairs",
            "A flat line to beat: references do not learn.",
            _per_reference("accuracy", "eval"),
            FRACTION,
            0.5,
        ),
        Panel(
            "Held-out margin of each reference",
            "nats",
            "Above 0: the reference itself prefers the chosen.",
            _per_reference("margin", "eval"),
            mark=0.0,
        ),
        Panel(
            "Held-out weight of each reference",
            "share of the virtual reference",
            "As in training.",
            _per_reference("weight", "eval"),
            FRACTION,
        ),
        Panel(
            "Held-out clip fraction of each reference",
            "share of log-probs at a bound",
            "As in training.",
            _per_reference("clip_fraction", "eval"),
            FRACTION,
        ),
        Panel(
            "Which bound clips, held-out",
            "share of log-probs",
            "As in training.",
            (Line("eval/ref/*/clip_low", "*, lower"), Line("eval/ref/*/clip_high", "*, upper")),
            FRACTION,
        ),
        Panel(
            "Held-out log-probs of each reference",
            "nats per response",
            "Flat: the rows are the same each time.",
            _sides("eval/ref/*/logps", "*, "),
        ),
        Panel(
            "Held-out log-probs of the virtual reference",
            "nats per response",
            "Flat: neither the rows nor the references change.",
            _sides("eval/vref/logps"),
        ),
        Panel(
            "Held-out virtual reference minus RefM1",
            "nats",
            "As in training.",
            _one("eval/vref/offset", "mean over responses"),
            mark=0.0,
        ),
        Panel(
            "Held-out trust region half-width",
            "share of RefM1's log-prob",
            "As in training.",
            (Line("eval/ctro/eps_chosen", "chosen"), Line("eval/ctro/eps_rejected", "rejected")),
        ),
    ),
)

SECTIONS = (PREFERENCE, REFERENCES, OPTIMIZATION, PERFORMANCE, EVALUATION)
"""In the order of the page."""

NOT_DRAWN = ("train/epoch", "train/num_tokens", "train/prompts", "eval/prompts")
"""Metrics that say how far a run is and how large its steps are: numbers in a table, no charts."""


def section_of(metric: str) -> Section | None:
    """The first section that has a panel with the metric; None for one of NOT_DRAWN or one that nobody has planned."""
    for section in SECTIONS:
        for panel in section.panels:
            if any(line.match(metric) is not None for line in panel.lines):
                return section
    return None
