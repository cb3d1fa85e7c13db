"""What is compared: every objective that both sides have, with the options that make them the same.

Standard library only: both virtual environments import this file, so neither side can drift from the other.
"""

from dataclasses import dataclass, replace
from typing import Any

ROWS, BATCH, STEPS = 16, 4, 6
"""Rows used, in file order; rows per SGD step; losses recorded. The last one is the loss after STEPS - 1 updates."""
TOLERANCE = 1e-4
"""Most that any of the losses may differ."""
MAX_LENGTH = 1024
"""Tokens; no row is as long."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One objective as both sides call it."""

    ours: dict[str, Any]
    """The `loss:` section of our configuration."""
    trainer: str
    """TRL's module and the trainer's prefix."""
    theirs: dict[str, Any]
    """Options of the trainer's own config class."""
    learning_rate: float
    """Of plain SGD on the tiny model: large enough that the loss moves, small enough that it does not run away."""
    real_learning_rate: float | None = 1e-3
    """The same on the real model; None: a variant, for the tiny model alone."""
    view: str = "pair"
    """Of our data: pair (a row's best and worst response), unpaired (those two as two examples), triple (all three)."""
    reference: bool = False
    """There is a reference model."""
    accumulate: int = 1
    """Micro-batches that TRL cuts a step into. Ours always cuts it in two, and no loss may change by it."""
    own_mismatch: bool = False
    """KTO: TRL keeps the mismatched pairs that it makes instead of being given ours."""
    why_apart: str = ""
    """Why the two need not agree; empty where they must."""

    def rate(self, model: str) -> float | None:
        """The learning rate on a model, None where the case is left out."""
        return self.learning_rate if model == "tiny" else self.real_learning_rate


DPO, KTO = "trl:DPO", "trl:KTO"
CPO, ORPO, TPO = "trl.experimental.cpo:CPO", "trl.experimental.orpo:ORPO", "trl.experimental.tpo:TPO"

_KTO = Case(
    ours={"name": "kto", "beta": 0.1},
    trainer=KTO,
    theirs={"loss_type": "kto", "beta": 0.1},
    learning_rate=1e-2,
    real_learning_rate=3e-3,
    view="unpaired",
    reference=True,
)
_CPO = Case(
    ours={"name": "cpo", "beta": 0.1, "alpha": 1.0},
    trainer=CPO,
    theirs={"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
    learning_rate=1e-3,
)
_ORPO = Case(
    ours={"name": "orpo", "lam": 0.1, "nll": "full"},
    trainer=ORPO,
    theirs={"beta": 0.1},
    learning_rate=1e-2,
    real_learning_rate=3e-3,
)
_SIMPO = Case(
    ours={"name": "simpo", "beta": 2.0, "gamma": 0.5},
    trainer=CPO,
    theirs={"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    learning_rate=1e-2,
    real_learning_rate=3e-3,
)
_TPO = Case(
    ours={"name": "tpo", "beta": 0.01, "alpha": 1.0},
    trainer=TPO,
    theirs={"loss_type": "sigmoid", "beta": 0.01, "tpo_alpha": 1.0},
    learning_rate=1e-2,
    real_learning_rate=3e-3,
    view="triple",
)


def _variant(case: Case, ours: dict[str, Any], theirs: dict[str, Any], **changes: Any) -> Case:
    """A case with further options, for the tiny model alone."""
    changes = {"real_learning_rate": None, **changes}
    return replace(case, ours={**case.ours, **ours}, theirs={**case.theirs, **theirs}, **changes)


CASES: dict[str, Case] = {
    "dpo": Case(
        ours={"name": "dpo", "beta": 0.1},
        trainer=DPO,
        theirs={"loss_type": ["sigmoid"], "beta": 0.1},
        learning_rate=1e-3,
        reference=True,
    ),
    "ipo": Case(
        ours={"name": "ipo", "tau": 0.1, "length_norm": True},
        trainer=DPO,
        theirs={"loss_type": ["ipo"], "beta": 0.1},
        learning_rate=1e-2,
        reference=True,
    ),
    "kto": _KTO,
    "cpo": _CPO,
    "orpo": _ORPO,
    "simpo": _SIMPO,
    "tpo": _TPO,
    "tpo_l": replace(
        _TPO,
        ours={"name": "tpo", "variant": "tpo_l", "beta": 2.0, "gamma": 0.5, "alpha": 1.0},
        theirs={"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 0.5, "tpo_alpha": 1.0},
    ),
    "kto, as pairs": _variant(_KTO, {}, {}, view="pair"),
    "kto, weighted": _variant(_KTO, {"lam_d": 1.3, "lam_u": 0.8}, {"desirable_weight": 1.3, "undesirable_weight": 0.8}),
    "cpo, hinge": _variant(
        _CPO,
        {"comparison": "hinge", "beta": 0.01, "alpha": 0.5},
        {"loss_type": "hinge", "beta": 0.01, "cpo_alpha": 0.5},
    ),
    "simpo, with NLL": _variant(_SIMPO, {"sft_weight": 0.2}, {"cpo_alpha": 0.2}),
    "tpo, ipo": _variant(
        _TPO, {"comparison": "ipo", "beta": 0.5, "alpha": 0.0}, {"loss_type": "ipo", "beta": 0.5, "tpo_alpha": 0.0}
    ),
    # What stays apart, with its numbers.
    "kto, TRL's mismatch": _variant(
        _KTO,
        {},
        {},
        own_mismatch=True,
        why_apart="KTO's z0 needs prompts with responses of other prompts. TRL turns the responses round inside each "
        "micro-batch, so a row's partner depends on the batch. Ours is the file's next prompt, whatever the batch. "
        "The two differ here in one prompt of four.",
    ),
    "orpo, NLL of responses": _variant(
        _ORPO,
        {"nll": "response"},
        {},
        why_apart="Our default averages ORPO's NLL over the response; TRL's, which cannot be changed, over the prompt "
        "as well: `nll: full` here.",
    ),
    "cpo, TRL accumulates": _variant(
        _CPO,
        {},
        {},
        accumulate=2,
        why_apart="Over 2 x 2 rows TRL takes the mean of two token means, which weighs tokens of the shorter half "
        "more. Ours is the mean over the step's tokens, in two micro-batches or one.",
    ),
}
