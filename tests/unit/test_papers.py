"""The papers' runs: each loads, its adapters are those of its data sets, and its splits have the papers' sizes."""

from pathlib import Path

import pytest

from mrpo_ds.config.load import load_config
from mrpo_ds.config.schema import Config, SourceConfig
from mrpo_ds.config.shares import percent
from mrpo_ds.data.named import adapter_for
from mrpo_ds.registry import names

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "configs" / "papers"
FILES = sorted(FOLDER.glob("*.yaml"))

# Rows of a split as its data set's card says; S1's and S2's are "about", and at least as many as a part is taken of.
PUBLISHED = {
    ("wangrongsheng/comparison_gpt4_data_en", "train"): 36_400,
    ("NeuralNovel/Neural-DPO", "train"): 1068,
    ("argilla/distilabel-math-preference-dpo", "train"): 2418,
    ("sablo/HelpSteer_binarized", "train"): 8130,
    ("sablo/HelpSteer_binarized", "test"): 418,
    ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs"): 61_135,
    ("HuggingFaceH4/ultrafeedback_binarized", "test_prefs"): 2000,
    ("HongchengGao/Nectar_binarized", "train"): 182_954,
    ("openbmb/UltraFeedback", "train"): 63_967,
    ("Intel/orca_dpo_pairs", "train"): 12_859,
    ("HuggingFaceH4/ultrachat_200k", "train_sft"): 207_865,
    ("HuggingFaceH4/ultrachat_200k", "test_sft"): 23_110,
}

# Rows to train on and to test on, by file. The papers' numbers where they can be had; the files say where they cannot.
SIZES = {
    "mrpo_s1": (364, 3276),
    "mrpo_s2": (502, 502),
    "mrpo_s3": (2176, 242),  # the paper: 2178 and 242, more than there are
    "mrpo_helpsteer": (8130, 418),
    "mrpo_ultrafeedback": (61_135, 2000),
    "mrpo_ultrafeedback_k3": (61_135, 2000),
    "mrpo_nectar": (164_658, 18_296),  # the paper: 164K and 19K
    "tpo_ultrafeedback": (10_000, 2000),
    "sft_ultrachat": (207_865, 1000),
    "mdpo_dpo_seed": (12_859, 0),  # the paper: about 13000
    "mppo_ultrafeedback": (63_967, 0),
    "mppo_ultrafeedback_point": (63_967, 0),
}
UNPUBLISHED = {"mdpo_augmented"}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDPO_AUGMENTED", "augmented.jsonl")
    path: Path = request.param
    return path


@pytest.fixture
def config(file: Path) -> Config:
    return load_config(str(file))


def part(source: SourceConfig) -> tuple[int, int]:
    """First row and the one after the last, in the random order of a source's rows."""
    rows = PUBLISHED[source.source, source.split]
    if source.take is None:
        return 0, rows
    first, last = source.take
    if percent(first) is None:
        return first, last
    return rows * int(first.rstrip("%")) // 100, rows * int(last.rstrip("%")) // 100


def test_every_file_has_its_sizes_here() -> None:
    assert {file.stem for file in FILES} == set(SIZES) | UNPUBLISHED


def test_the_adapter_is_that_of_the_data_set(file: Path, config: Config) -> None:
    for source in (*config.data.train, *config.data.eval):
        assert source.adapter in names("mrpo_ds.data.adapters")
        if file.stem not in UNPUBLISHED:
            assert source.adapter == adapter_for(source.source)


def test_sizes(file: Path, config: Config) -> None:
    if file.stem in UNPUBLISHED:
        assert not config.data.eval
        return
    parts = [[part(source) for source in sources] for sources in (config.data.train, config.data.eval)]
    assert tuple(sum(last - first for first, last in one) for one in parts) == SIZES[file.stem]


def test_parts_lie_within_the_rows_and_do_not_overlap(file: Path, config: Config) -> None:
    if file.stem in UNPUBLISHED:
        return
    sources = [*config.data.train, *config.data.eval]
    for number, source in enumerate(sources):
        first, last = part(source)
        assert 0 <= first < last <= PUBLISHED[source.source, source.split]
        for other in sources[:number]:
            if (other.source, other.split) == (source.source, source.split):
                other_first, other_last = part(other)
                assert last <= other_first or other_last <= first


def test_what_the_papers_say_stands_in_the_files(file: Path, config: Config) -> None:
    """Batch, epochs, learning rate and beta; MPPO's paper gives none of them."""
    train = config.train
    said = {
        "mrpo": (8, 3 if file.stem[-2:] in ("s1", "s2", "s3") else 1, 1e-5, 0.1),
        "tpo": (16, 1, 5e-7, 0.1),
        "mdpo": (16, 3, 1e-6, 0.1),
    }
    paper = file.stem.partition("_")[0]
    if paper in said:
        beta = config.loss.options.beta
        assert (train.batch_size, train.epochs, train.learning_rate, beta) == said[paper]
    else:
        assert paper in ("mppo", "sft")
