"""The bridge: where the roles meet. One gloo group of the K + 1 role leaders, policy first.

Message t is an all-gather of one flat float64 tensor per leader. The policy's own part is empty; it posts its side of
message t + run_ahead before it needs message t. A posted side is a credit: a reference that has scored a batch waits
until the policy has posted for it, which bounds how far the references run ahead, and with it their memory.

Only the policy's wait for a message has a time limit. A reference may wait for as long as the policy evaluates or
writes a checkpoint: that the policy lives is the heartbeat's business.
"""

# torch.distributed exports its stores and process groups without telling type checkers.
# mypy: disable-error-code="attr-defined,name-defined"

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from mrpo_ds.distributed.trust import TOKEN, is_proof, prove
from mrpo_ds.distributed.worlds import World
from mrpo_ds.errors import ReferenceError

WITHOUT_LIMIT = timedelta(days=30)


class BrokenBridge(ReferenceError):
    """A peer is gone or gives no answer. Who it is, the other end of the bridge cannot know: ask the heartbeat."""


class Bridge:
    """A leader's end of the bridge. Every leader must send or receive once per message, in one order."""

    def __init__(self, world: World) -> None:
        """Meet the other leaders.

        Raises BrokenBridge, naming them, when some do not come in time, ReferenceError when one does not have the
        run's token.
        """
        roles = world.topology.roles
        self._names = [role.name for role in roles]
        self._timeout = timedelta(seconds=world.rendezvous.timeout_seconds)
        store = dist.PrefixStore("bridge", world.rendezvous.connect())
        _meet(store, self._names, world)
        try:
            self._group = dist.ProcessGroupGloo(store, self._names.index(world.role.name), len(roles), WITHOUT_LIMIT)
        except RuntimeError as error:
            raise self._broken(error) from error

    def send(self, message: Tensor) -> None:
        """A reference's side: deliver one flat message and wait until every leader has it.

        Raises BrokenBridge when a peer is gone.
        """
        self._wait(self._post(message), WITHOUT_LIMIT)

    def receive(self, sizes: Iterable[int], run_ahead: int) -> Iterator[Tensor]:
        """The policy's side: yield [K, size] for each message size, in order, with run_ahead more posted.

        Raises BrokenBridge when a peer is gone, or has not answered within the timeout from when it was asked.
        """
        waiting = iter(sizes)
        posted: deque[_Posted] = deque()
        while True:
            for size in islice(waiting, run_ahead + 1 - len(posted)):
                posted.append(self._post(torch.zeros(size, dtype=torch.float64)))
            if not posted:
                return
            yield torch.stack(self._wait(posted.popleft(), self._timeout)[1:])

    def _post(self, mine: Tensor) -> "_Posted":
        outputs = [torch.empty_like(mine) for _ in self._names]
        try:
            return self._group.allgather([outputs], [mine]), outputs
        except RuntimeError as error:
            raise self._broken(error) from error

    def _wait(self, posted: "_Posted", timeout: timedelta) -> list[Tensor]:
        work, outputs = posted
        try:
            work.wait(timeout)
        except RuntimeError as error:
            raise self._broken(error) from error
        return outputs

    def _broken(self, error: RuntimeError) -> BrokenBridge:
        what = str(error).split(". ")[0].splitlines()[0]
        if "timed out" in what:
            what = f"no answer for {self._timeout.total_seconds():g} s (topology.timeout_seconds)"
        return BrokenBridge(f"the bridge between {', '.join(self._names)} broke: {what}")


_Posted = tuple[dist.Work, list[Tensor]]
"""An all-gather under way, and the tensors that it fills, one per leader."""


def _meet(store: dist.Store, names: list[str], world: World) -> None:
    """Wait for all leaders, who may load their models for as long as the timeout, and see that they are of this run."""
    known = world.rendezvous
    timeout = timedelta(seconds=known.timeout_seconds)
    store.set(f"here/{world.role.name}", prove(known.token, "bridge", known.nonce, world.role.name))
    try:
        store.wait([f"here/{name}" for name in names], timeout)
    except RuntimeError as error:
        try:
            missing = [name for name in names if not store.check([f"here/{name}"])]
        except RuntimeError:
            raise BrokenBridge("the store that global rank 0 keeps is gone") from error
        raise BrokenBridge(
            f"{', '.join(missing)} did not come to the bridge within {timeout.total_seconds():g} s; if loading a model "
            "takes that long, raise topology.timeout_seconds"
        ) from error
    for name in names:
        if not is_proof(store.get(f"here/{name}").decode(errors="replace"), known.token, "bridge", known.nonce, name):
            raise ReferenceError(
                f"who came to the bridge as {name} does not have this run's token: another program writes to the run's "
                f"store at {known.launch.master_addr}:{known.launch.master_port}. Set {TOKEN}, and close that network."
            )
