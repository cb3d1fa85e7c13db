"""The bridge: where the roles meet. One gloo group of the K + 1 role leaders, policy first.

Message t is an all-gather of one flat float64 tensor per leader. The policy's own part is empty; it posts its side of
message t + run_ahead before it needs message t. A posted side is a credit: a reference that has scored a batch waits
until the policy has posted for it, which bounds how far the references run ahead, and with it their memory.
"""

from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from mrpo_ds.distributed.worlds import World
from mrpo_ds.errors import ReferenceError


class Bridge:
    """A leader's end of the bridge. Every leader must send or receive once per message, in one order."""

    def __init__(self, world: World) -> None:
        roles = world.topology.roles
        self._names = [role.name for role in roles]
        self._member = self._names.index(world.role.name)
        store = dist.PrefixStore("bridge", world.rendezvous.connect())
        timeout = timedelta(seconds=world.rendezvous.timeout_seconds)
        self._group = dist.ProcessGroupGloo(store, self._member, len(roles), timeout)

    def send(self, message: Tensor) -> None:
        """A reference's side: deliver one flat message and wait until every leader has it.

        Raises ReferenceError when a peer is gone or gives no answer in time.
        """
        self._wait(*self._post(message))

    def receive(self, sizes: list[int], run_ahead: int) -> Iterator[Tensor]:
        """The policy's side: yield [K, size] for each message size, in order, with run_ahead more posted.

        Raises ReferenceError as send does.
        """
        posted: list[tuple[dist.Work, list[Tensor]]] = []
        for number in range(len(sizes)):
            while len(posted) < min(number + 1 + run_ahead, len(sizes)):
                posted.append(self._post(torch.zeros(sizes[len(posted)], dtype=torch.float64)))
            answers = self._wait(*posted[number])[1:]
            posted[number] = (posted[number][0], [])  # the buffers of a finished message are not needed again
            yield torch.stack(answers)

    def _post(self, mine: Tensor) -> tuple[dist.Work, list[Tensor]]:
        outputs = [torch.empty_like(mine) for _ in self._names]
        try:
            return self._group.allgather([outputs], [mine]), outputs
        except RuntimeError as error:
            raise self._lost(error) from error

    def _wait(self, work: dist.Work, outputs: list[Tensor]) -> list[Tensor]:
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error
        return outputs

    def _lost(self, error: RuntimeError) -> ReferenceError:
        return ReferenceError(f"the bridge between {', '.join(self._names)} broke: {str(error).splitlines()[0]}")
