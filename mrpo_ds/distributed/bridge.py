"""The bridge: where the roles meet. One gloo group of the K + 1 role leaders, policy first.

Message t is an all-gather of one flat float64 tensor per leader. The policy's own part is empty; it posts its side of
message t + run_ahead before it needs message t. A posted side is a credit: a reference that has scored a batch waits
until the policy has posted for it, which bounds how far the references run ahead, and with it their memory.

No wait for a message has a time limit of its own: who is late, and since when, is the heartbeat's business. The policy
leaves its wait when it is asked to stop.
"""

# torch.distributed exports its stores and process groups without telling type checkers.
# mypy: disable-error-code="attr-defined,name-defined"

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from mrpo_ds.distributed.trust import TOKEN, is_proof, prove
from mrpo_ds.distributed.worlds import World
from mrpo_ds.errors import ReferenceError

WITHOUT_LIMIT = timedelta(days=30)
LOOK_UP = timedelta(seconds=0.5)
"""How often the policy's wait looks whether it shall end."""


class BrokenBridge(ReferenceError):
    """A peer is gone or gives no answer. Who it is, the other end of the bridge cannot know: ask the heartbeat."""


class Interrupted(BrokenBridge):
    """The policy was asked to stop while it waited."""


class Bridge:
    """A leader's end of the bridge. Every leader must send or receive once per message, in one order."""

    def __init__(self, world: World) -> None:
        """Meet the other leaders, however long they load.

        Raises BrokenBridge when global rank 0 is gone, ReferenceError when one does not have the run's token.
        """
        roles = world.topology.roles
        self._names = [role.name for role in roles]
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
        self._wait(self._post(message))

    def receive(
        self, sizes: Iterable[int], run_ahead: int, stop_asked: Callable[[], bool] = lambda: False
    ) -> Iterator[Tensor]:
        """The policy's side: yield [K, size] for each message size, in order, with run_ahead more posted.

        Raises BrokenBridge when a peer is gone, Interrupted when stop_asked() becomes true before a message is there.
        """
        waiting = iter(sizes)
        posted: deque[_Posted] = deque()
        while True:
            for size in islice(waiting, run_ahead + 1 - len(posted)):
                posted.append(self._post(torch.zeros(size, dtype=torch.float64)))
            if not posted:
                return
            yield torch.stack(self._wait(posted.popleft(), stop_asked)[1:])

    def _post(self, mine: Tensor) -> "_Posted":
        outputs = [torch.empty_like(mine) for _ in self._names]
        try:
            return self._group.allgather([outputs], [mine]), outputs
        except RuntimeError as error:
            raise self._broken(error) from error

    def _wait(self, posted: "_Posted", stop_asked: Callable[[], bool] = lambda: False) -> list[Tensor]:
        work, outputs = posted
        while True:
            done = work.is_completed()  # asked before: what completes just after LOOK_UP is no failure
            try:
                work.wait(LOOK_UP)
                return outputs
            except RuntimeError as error:
                if done:  # or the time to look up has come, and the wait goes on
                    raise self._broken(error) from error
            if stop_asked():
                raise Interrupted("asked to stop")

    def _broken(self, error: RuntimeError) -> BrokenBridge:
        what = str(error).split(". ")[0].splitlines()[0]
        return BrokenBridge(f"the bridge between {', '.join(self._names)} broke: {what}")


_Posted = tuple[dist.Work, list[Tensor]]
"""An all-gather under way, and the tensors that it fills, one per leader."""


def _meet(store: dist.Store, names: list[str], world: World) -> None:
    """Wait for all leaders, and see that they are of this run."""
    known, own = world.rendezvous, world.role.name
    try:
        store.set(f"here/{own}", prove(known.token, "bridge", known.nonce, own))
        store.wait([f"here/{name}" for name in names], WITHOUT_LIMIT)
    except RuntimeError as error:
        raise BrokenBridge("the store that global rank 0 keeps is gone") from error
    for name in names:
        if not is_proof(store.get(f"here/{name}").decode(errors="replace"), known.token, "bridge", known.nonce, name):
            raise ReferenceError(
                f"who came to the bridge as {name} does not have this run's token: another program writes to the run's "
                f"store at {known.launch.master_addr}:{known.launch.master_port}. Set {TOKEN}, and close that network."
            )
