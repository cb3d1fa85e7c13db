"""A reference that looks into its store before it computes, and keeps what it computed.

All three placements use it: with every row stored there is no model to load, with none it is that model's scorer.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count

import torch
from torch import Tensor

from mrpo_ds.console import log, warn
from mrpo_ds.data.encodings import SplitEncodings
from mrpo_ds.data.plan import Batch, Splits
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.distributed.collectives import broadcast_from_leader, gather_objects
from mrpo_ds.errors import ConfigError, ReferenceError
from mrpo_ds.reference.scoring import ReferenceScorer, Scored, by_prompt, lengths_of
from mrpo_ds.reference.store import ReferenceStore

CHECKED_AT_ONCE = 32
"""Rows of the check that are scored in one go, for each rank."""


@dataclass(frozen=True)
class Survey:
    """What of a run's rows is stored; the same on every rank of the reference."""

    rows: int
    """Rows of all splits."""
    missing: int
    """Those with a response that is not stored."""
    sample: list[tuple[str, int]]
    """(split, index) of the stored rows that are to be scored again."""
    logps: list[list[float]]
    """What is stored of their responses, nats."""


@dataclass(frozen=True)
class Memory:
    """One reference's store and what it has of this run's rows."""

    name: str
    store: ReferenceStore | None
    """On the leader alone."""
    encodings: SplitEncodings
    survey: Survey


def look_up(name: str, store: ReferenceStore | None, encodings: SplitEncodings, check_fraction: float) -> Memory:
    """Count what is stored of the rows of all splits. Every rank of the reference must call it; the leader has a store.

    Args:
        name: of the reference.
        store: None on the other ranks.
        encodings: the reference's own.
        check_fraction: share of the stored rows that Survey.sample names, 0 to 1; if it is not 0, at least one row.
    """
    words = []
    if store is not None:
        words = [json.dumps(asdict(survey_of(name, store, encodings, check_fraction)))]
    said = json.loads(gather_objects(words)[0][0])
    said["sample"] = [(split, index) for split, index in said["sample"]]
    return Memory(name, store, encodings, Survey(**said))


def survey_of(name: str, store: ReferenceStore, encodings: SplitEncodings, check_fraction: float) -> Survey:
    """What the store has of these rows, said in the log too. The arguments are those of look_up."""
    for damage in store.damaged:
        warn(f"warning: reference store: {damage}; its rows count as missing")
    every = round(1 / check_fraction) if check_fraction else 0
    rows = stored = 0
    sample, logps = [], []
    for split, examples in sorted(encodings.items()):
        for index in range(len(examples)):
            found = [store.find(sequence) for sequence in examples[index]]
            rows += 1
            if any(map(math.isnan, found)):
                continue
            if every and stored % every == 0:
                sample.append((split, index))
                logps.append(found)
            stored += 1
    log(f"reference {name}: {stored} of {rows} rows are stored in {store.folder}")
    return Survey(rows, rows - stored, sample, logps)


def refuse_missing(surveys: Mapping[str, Survey]) -> None:
    """Raise ConfigError when a row of a reference is not stored. surveys: by the references' names."""
    lacking = [f"{one.missing} of {one.rows} rows of {name}" for name, one in surveys.items() if one.missing]
    if lacking:
        raise ConfigError(
            f"topology.placement is 'stored', but the store lacks {', '.join(lacking)}. Fill it with "
            "`mrpo-ds score CONFIG [key=value ...]`, with the arguments of this run, or set "
            "topology.store_missing=score to score them on the policy's ranks."
        )


def remember(
    memory: Memory,
    load: Callable[[], ReferenceScorer],
    splits: Splits,
    tolerance: float,
    device: torch.device,
) -> "StoredScorer":
    """The reference as it answers from now on; its model is loaded only if a row is missing or to be checked.

    Args:
        memory: what is stored.
        load: loads the model; called on every rank, at most once.
        splits: the rows as text, for messages.
        tolerance: how far a stored log-prob may be from the model's, nats, times the root of its tokens.
        device: where answers are.

    Raises ReferenceError when a stored row of the sample is not what the model says.
    """
    scorer = load() if memory.survey.missing or memory.survey.sample else None
    if scorer is not None:
        _check(memory, scorer, splits, tolerance)
    return StoredScorer(memory, scorer if memory.survey.missing else None, device)


class StoredScorer:
    """Answers from the store, and scores what is not there. A Scorer."""

    def __init__(self, memory: Memory, scorer: ReferenceScorer | None, device: torch.device) -> None:
        """Scorer is None when every row is stored. See remember."""
        self._memory = memory
        self._store = memory.store
        self._scorer = scorer
        self._device = device
        self._warned = False

    def score(self, batch: Batch) -> Scored:
        """See Scorer."""
        started = time.perf_counter()
        encoded = [self._memory.encodings[batch.split][index] for index in batch.ids]
        sequences = [one for row in encoded for one in row]
        logps = self._stored(sequences)
        missing = logps.isnan().nonzero().flatten().tolist()
        if missing:
            logps[missing] = self._scored(_only(encoded, missing))
        self.close()  # what a checkpoint rests on is on the disk before it: a resumed run reads the same bits
        return Scored(
            logps=by_prompt(logps, encoded),
            lengths=lengths_of(encoded, self._device),
            seconds=time.perf_counter() - started,
            tokens=sum(len(sequences[index].ids) for index in missing),
            stored=1 - len(missing) / len(sequences),
        )

    def close(self) -> None:
        """Write what is not yet written; a failure is a warning, since the run has its numbers."""
        if self._store is None:
            return
        try:
            self._store.flush()
        except ReferenceError as error:
            if not self._warned:
                warn(f"warning: {error}. These rows will be scored again")
            self._warned = True

    def check_kept(self) -> None:
        """Raise ReferenceError unless every row is in the store's files by now. Every rank must call it."""
        store = None if self._store is None else ReferenceStore(self._store.folder, {})
        left = look_up(self._memory.name, store, self._memory.encodings, 0).survey
        if left.missing:
            raise ReferenceError(
                f"reference {self._memory.name}: {left.missing} of {left.rows} rows are not stored. Their log-probs "
                "are not finite, or the store cannot be written; a warning above then says why."
            )

    def _stored(self, sequences: Sequence[Encoded]) -> Tensor:
        """[N] what the leader's store has, NaN for what it has not."""
        logps = torch.empty(len(sequences), device=self._device)
        if self._store is not None:
            logps = torch.tensor([self._store.find(sequence) for sequence in sequences], device=self._device)
        return broadcast_from_leader(logps)

    def _scored(self, prompts: Sequence[Sequence[Encoded]]) -> Tensor:
        if self._scorer is None:
            raise ReferenceError(f"reference {self._memory.name}: the store has lost rows that it had at the start")
        logps = self._scorer.score_prompts(prompts)
        if self._store is not None:
            self._store.add([*chain.from_iterable(prompts)], logps.tolist())
        return logps


def _only(prompts: Sequence[Sequence[Encoded]], kept: Sequence[int]) -> list[list[Encoded]]:
    """The sequences with these numbers, counted over all prompts; prompts without any are left out."""
    numbers, wanted = count(), set(kept)
    rows = [[sequence for sequence in row if next(numbers) in wanted] for row in prompts]
    return [row for row in rows if row]


def _check(memory: Memory, scorer: ReferenceScorer, splits: Splits, tolerance: float) -> None:
    """Raise ReferenceError for the first row of the sample that is stored otherwise than the model says."""
    sample, logps = memory.survey.sample, memory.survey.logps
    together = CHECKED_AT_ONCE * scorer.size
    for start in range(0, len(sample), together):
        places = sample[start : start + together]
        encoded = [memory.encodings[split][index] for split, index in places]
        fresh = iter(scorer.score_prompts(encoded).tolist())
        for place, row, stored in zip(places, encoded, logps[start : start + together], strict=True):
            for number, (sequence, kept) in enumerate(zip(row, stored, strict=True), start=1):
                now = next(fresh)
                if not abs(now - kept) <= tolerance * math.sqrt(sequence.num_scored):
                    split, index = place
                    raise ReferenceError(
                        f"reference {memory.name}, {splits[split][index].source}, response {number}: the store says "
                        f"{kept:.6f} nats for its {sequence.num_scored} tokens, but the model says {now:.6f}. The "
                        "stored rows were made by other code or hardware; look at `mrpo-ds store ls`, delete this "
                        "reference's folder and score it again."
                    )
