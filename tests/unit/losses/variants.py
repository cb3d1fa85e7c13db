"""Every loss with the options with which test_contract.py tries it.

VARIANTS covers every value of every option that is a choice; a test holds it to that. A loss that is not in it is
tried with its defaults.
"""

from typing import Any, NamedTuple

from mrpo_ds.losses import LossFunction, load, needs
from mrpo_ds.registry import names
from mrpo_ds.types import LossOutput, Needs, ResponseLogps

LOSSES = names("mrpo_ds.losses")
RESPONSES = {"pair": 2, "triple": 3, "ranked": 4, "best": 1, "unpaired": 1, "point": 1}
"""Columns of a batch by view of the data."""

ONE = {"weights": "uniform", "ctro": "fixed", "virtual_ref": "geometric", "nonfinite": "drop"}
TWO = {"weights": [0.7, 0.2, 0.1], "ctro": "none", "virtual_ref": "arithmetic", "nonfinite": "mask_ref"}
SWAPPED = {"weights": "arwc", "arwc_assignment": "code_swapped", "eps_norm": "mean"}
BASELINE = [{}, ONE, TWO, SWAPPED, {"weights": "arwc"}]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "cpo": [
        {},
        {"nll_reduction": "sum", "label_smoothing": 0.1},
        {"nll_reduction": "seq_mean", "comparison": "hinge"},
        {"alpha": 0.0},
    ],
    "dpo": [{}, {"comparison": "hinge", "reference_free": True}, {"label_smoothing": 0.1}],
    "ipo": [{}, {"length_norm": False}],
    "kto": [{}, {"kl": "pair", "lam_d": 1.3, "lam_u": 0.7}],
    "mdpo": [
        {},
        {"pairs": "adjacent"} | ONE,
        {"pairs": "all", "reduce": "sum"} | TWO,
        {"pairs": "top_vs_rest"} | SWAPPED,
        {"weight_rounding": "two_decimals"},
    ],
    "mean_ref": BASELINE,
    "mppo": [
        {"variant": "point_ce"},
        {"variant": "point_mse"},
        {"variant": "pair_single"},
        {"variant": "pair_mns"},
        {"variant": "pair_mnm"},
        {"variant": "pair_mcs"},
        {"variant": "pair_mcm"},
        {"variant": "list_mle"},
        {"variant": "pair_single", "anchor": "virtual", "negative": "worst"},
        {"variant": "pair_mns", "anchor": "virtual"} | ONE,
        {"variant": "pair_mnm", "anchor": "virtual"},
        {"variant": "pair_mcs", "anchor": "virtual", "combinations": "one"},
        {"variant": "pair_mcm", "anchor": "virtual"} | TWO,
        {"variant": "list_mle", "anchor": "virtual"} | SWAPPED,
    ],
    "mrpo": [{}, ONE, TWO, SWAPPED],
    "multi_ref_dpo": [{key: value for key, value in one.items() if key != "virtual_ref"} for one in BASELINE],
    "orpo": [{}, {"nll": "full"}],
    "sft": [{}, {"train_on_prompt": True}, {"reduction": "seq_mean", "train_on_prompt": True}],
    "simpo": [{}, {"gamma": 1.0, "sft_weight": 0.5}, {"gamma_beta_ratio": 0.3}],
    "tpo": [
        {},
        {"variant": "tpo_l", "beta": 2.0, "gamma": 1.6, "nll_reduction": "sum", "label_smoothing": 0.1},
        {"nll_reduction": "seq_mean", "comparison": "hinge"},
        {"comparison": "ipo", "alpha": 0.9},
        {"alpha": 0.0},
    ],
}


class Objective(NamedTuple):
    """A loss with its options and the view of the data on which it is tried."""

    config: Any
    needs: Needs
    view: str
    function: LossFunction

    @property
    def references(self) -> int:
        """None where none is needed; some that must not matter have a test of their own."""
        return self.needs.exactly[0] if self.needs.exactly else 2 * self.needs.references

    @property
    def responses(self) -> int:
        return RESPONSES[self.view]

    def loss(self, logps: ResponseLogps) -> LossOutput:
        return self.function(logps, self.config)


def variants(name: str) -> dict[str, Objective]:
    """A loss with each of its options on each view that it then takes, by a label for the test."""
    config_class, function = load(name)
    found = {}
    for options in VARIANTS.get(name, [{}]):
        config = config_class(**options)
        asked = needs(name, config)
        for view in asked.views:
            label = "-".join([name, *(str(value).replace(" ", "") for value in options.values()), view])
            found[label] = Objective(config, asked, view, function)
    return found
