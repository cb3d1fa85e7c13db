"""References on ranks of their own, which run ahead of the policy.

A message is one flat float64 tensor per reference: B * R log-probs, B * R lengths, then the telemetry.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import tee

import torch
from torch import Tensor

from mrpo_ds.data.encodings import SplitEncodings, shape_of
from mrpo_ds.data.plan import Batch
from mrpo_ds.distributed.bridge import Bridge, BrokenBridge, Interrupted
from mrpo_ds.distributed.collectives import broadcast_from_leader
from mrpo_ds.memory import peak_memory_gib
from mrpo_ds.reference.client import ReferenceAnswer
from mrpo_ds.reference.scoring import Scored, Scorer

TELEMETRY = 5
"""score seconds, tokens, idle seconds, stored, memory."""
NOTHING = -1.0
"""The leader broadcasts this, in the place of an answer that will not come: no part of an answer's telemetry is < 0."""


class ServedReferences:
    """The policy's side. The leader receives from the bridge and broadcasts inside the policy's world."""

    def __init__(
        self,
        bridge: Bridge | None,
        num_references: int,
        run_ahead: int,
        encodings: SplitEncodings,
        device: torch.device,
        stop_asked: Callable[[], bool],
    ) -> None:
        """Bridge is None on policy ranks other than the leader. Encodings are the policy's: they say the shapes.

        stop_asked() tells the leader, in a wait, that it shall end.
        """
        self._bridge = bridge
        self._num_references = num_references
        self._run_ahead = run_ahead
        self._encodings = encodings
        self._device = device
        self._stop_asked = stop_asked

    def stream(self, batches: Iterable[Batch]) -> Iterator[ReferenceAnswer]:
        """See ReferenceClient."""
        self._why = "the policy's leader gets no answer"
        asked: Iterator[tuple[int, int]] = (shape_of(batch, self._encodings) for batch in batches)
        messages = None
        if self._bridge:
            asked, posted = tee(asked)
            sizes = (message_size(*shape) for shape in posted)
            messages = self._bridge.receive(sizes, self._run_ahead, self._stop_asked)
        for shape in asked:
            started = time.perf_counter()
            received = broadcast_from_leader(self._next(messages, message_size(*shape)).to(self._device))
            answer = _unpack(received, shape, time.perf_counter() - started)
            if NOTHING in answer.idle_seconds:
                raise Interrupted(self._why)
            yield answer

    def _next(self, messages: Iterator[Tensor] | None, size: int) -> Tensor:
        """The leader's [K, size], a message or NOTHING; on other ranks room for it."""
        if messages is not None:
            try:
                return next(messages)
            except (BrokenBridge, Interrupted) as error:
                self._why = str(error)
        return torch.full((self._num_references, size), NOTHING, dtype=torch.float64)

    def close(self) -> None:
        """See ReferenceClient."""


def serve(
    scorer: Scorer,
    bridge: Bridge | None,
    batches: Iterable[Batch],
    report: Callable[[str, int], None],
) -> None:
    """A reference rank's whole life: score every batch in order; the leader delivers each over the bridge.

    report(phase, step) is told what the rank is doing. Raises ReferenceError when the bridge breaks.
    """
    idle = 0.0
    for batch in batches:
        report(f"score {batch.split}", batch.step + 1)
        scored = scorer.score(batch)
        started = time.perf_counter()
        if bridge is not None:
            report(f"deliver {batch.split}", batch.step + 1)
            bridge.send(_pack(scored, idle))
        idle = time.perf_counter() - started


def message_size(prompts: int, responses: int) -> int:
    """Numbers in one reference's message about [B, R] responses."""
    return 2 * prompts * responses + TELEMETRY


def _pack(scored: Scored, idle_seconds: float) -> Tensor:
    values = [scored.seconds, float(scored.tokens), idle_seconds, scored.stored, peak_memory_gib()]
    telemetry = torch.tensor(values, dtype=torch.float64)
    return torch.cat([scored.logps.double().flatten().cpu(), scored.lengths.double().flatten().cpu(), telemetry])


def _unpack(received: Tensor, shape: tuple[int, int], wait_seconds: float) -> ReferenceAnswer:
    """Received [K, message size] -> the answer."""
    count = shape[0] * shape[1]
    telemetry = received[:, 2 * count :].cpu()  # [K, TELEMETRY]
    return ReferenceAnswer(
        logps=received[:, :count].reshape(-1, *shape).float(),
        lengths=received[:, count : 2 * count].reshape(-1, *shape).float(),
        wait_seconds=wait_seconds,
        score_seconds=telemetry[:, 0].tolist(),
        tokens=telemetry[:, 1].tolist(),
        idle_seconds=telemetry[:, 2].tolist(),
        stored=telemetry[:, 3].tolist(),
        memory_gib=telemetry[:, 4].tolist(),
    )
