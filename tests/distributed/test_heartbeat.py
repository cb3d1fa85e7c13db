"""Signs of life between real processes: who is named, by whom, how fast, and that everyone leaves."""

import ctypes
import re
import signal
import socket
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mrpo_ds.config.schema import DeadlinesConfig
from mrpo_ds.distributed.collectives import sum_over_ranks
from mrpo_ds.distributed.heartbeat import SAME_SIGNAL_SECONDS, Heartbeat
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.watch import Limits
from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
from mrpo_ds.errors import RUN_AGAIN, DataError, NonFiniteError, Stopped
from tests.distributed.harness import Outcome, Ranks, make_topology, say

TOPOLOGY = make_topology(2, a=1)
NO_RUN = Path("/nowhere")
"""output_dir, where nobody asks for a hang report."""
FAILED = 9
"""What the tests' exit_code() says."""
ERROR = "mrpo-ds: error: "
SOON = 6.0
"""Seconds within which everybody has left after a sign that needs no timeout: grace and farewell on a busy machine."""


def limits(silence: float, **deadlines: float) -> Limits:
    return Limits(silence, asdict(DeadlinesConfig()) | deadlines)


def enter(topology: Topology, launch: Launch, timeout: float, run_dir: Path = NO_RUN) -> Heartbeat:
    heartbeat = Heartbeat(topology, open_rendezvous(launch, 30), limits(timeout), lambda: FAILED, run_dir)
    heartbeat.start()
    return heartbeat


def live(topology: Topology, launch: Launch, timeout: float = 60) -> None:
    """Work for ever."""
    heartbeat = enter(topology, launch, timeout)
    heartbeat.phase("work", 5)
    time.sleep(0.3)
    say("going")
    sleep_in_c()


def sleep_in_c() -> None:
    """Be where a collective is that never returns: outside of Python, with the interpreter's lock free."""
    while True:
        ctypes.CDLL(None).sleep(60)  # a signal cuts it short


def errors(outcomes: dict[int, Outcome]) -> list[str]:
    """What the ranks said to the user, over all of them."""
    return [line for one in outcomes.values() for line in one.output.splitlines() if line.startswith(ERROR)]


def start_and(number: signal.Signals, *ranks: int, timeout: float = 60) -> tuple[Ranks, float]:
    started = Ranks(live, TOPOLOGY, timeout)
    started.wait_for("going", 0, 1, 2)
    return started, started.send_signal(number, *ranks)


# ---- death -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("victim", "name"), [(1, "policy rank 1"), (2, "ref/a rank 0")])
def test_a_killed_rank_is_named_once_and_at_once(victim: int, name: str) -> None:
    ranks, killed = start_and(signal.SIGKILL, victim)
    outcomes = ranks.finish()
    host = socket.gethostname()
    assert errors(outcomes) == [
        f"{ERROR}{name} (global rank {victim}, host {host}) died: it is gone without a word, "
        "last seen at step 5 in phase 'work'"
    ]
    assert outcomes[0].output.count(ERROR) == 1  # global rank 0 speaks
    for rank in {0, 1, 2} - {victim}:
        assert outcomes[rank].exit_code == FAILED
        assert outcomes[rank].ended - killed < 3


def test_the_loss_of_rank_0_is_named_once_and_at_once() -> None:
    ranks, killed = start_and(signal.SIGKILL, 0)
    outcomes = ranks.finish()
    assert len(errors(outcomes)) == 1
    assert re.search(r"policy rank 0 \(global rank 0, host .*\) died: .* at step 5", errors(outcomes)[0])
    for rank in (1, 2):
        assert outcomes[rank].exit_code == FAILED
        assert outcomes[rank].ended - killed < 2


def die_in_a_collective(topology: Topology, launch: Launch) -> None:
    """The others' collectives break because rank 1 dies: their errors are echoes."""
    rendezvous = open_rendezvous(launch, 30)
    heartbeat = Heartbeat(topology, rendezvous, limits(60), lambda: FAILED, NO_RUN)
    heartbeat.start()
    split(topology, rendezvous, share_gpus=False)
    heartbeat.phase("train", 3)
    time.sleep(0.2)
    say("going")
    try:
        for _ in range(100_000):
            sum_over_ranks(torch.ones(1))
    except RuntimeError as error:
        heartbeat.end_because(error)


def test_errors_that_are_echoes_of_a_death_do_not_hide_it() -> None:
    ranks = Ranks(die_in_a_collective, make_topology(3))
    ranks.wait_for("going", 0, 1, 2)
    ranks.send_signal(signal.SIGKILL, 1)
    outcomes = ranks.finish()
    assert len(errors(outcomes)) == 1
    assert re.search(r"policy rank 1 .* died: .* at step 3 in phase 'train'", errors(outcomes)[0])
    assert not any("Traceback" in outcome.output for outcome in outcomes.values())


# ---- silence ---------------------------------------------------------------------------------------------------------


def test_a_stopped_rank_is_named_after_the_timeout() -> None:
    ranks, stopped = start_and(signal.SIGSTOP, 2, timeout=3)
    outcomes = ranks.finish(leave_behind=(2,))
    assert len(errors(outcomes)) == 1
    assert re.search(r"ref/a rank 0 .* is stuck or cut off: no sign of life for [34] s, .* step 5", errors(outcomes)[0])
    assert all(2 < outcomes[rank].ended - stopped < 9 for rank in (0, 1))


def test_a_stopped_rank_0_is_named_after_the_timeout() -> None:
    ranks, stopped = start_and(signal.SIGSTOP, 0, timeout=3)
    outcomes = ranks.finish(leave_behind=(0,))
    assert len(errors(outcomes)) == 1
    assert re.search(r"policy rank 0 .* is stuck or cut off: no sign of life for [34] s", errors(outcomes)[0])
    assert all(outcomes[rank].ended - stopped < 6 for rank in (1, 2))


def test_a_rank_that_never_starts_is_named() -> None:
    ranks = Ranks(live, TOPOLOGY, 3, absent=(2,))
    assert errors(ranks.finish()) == [f"{ERROR}ref/a rank 0 (global rank 2) never reported; waited 3 s"]


def hold_the_lock(topology: Topology, launch: Launch, who: int, seconds: float, timeout: float) -> None:
    """One rank holds the interpreter's lock, as a load or a compile may; then all finish."""
    heartbeat = enter(topology, launch, timeout)
    heartbeat.phase("load")
    time.sleep(0.2)
    if launch.rank == who:
        say("holding")
        ctypes.PyDLL(None).sleep(int(seconds))
        time.sleep(3)  # the work goes on: a rank that is done just then may leave in peace, signal or not
    else:
        time.sleep(seconds)
    heartbeat.done()


@pytest.mark.parametrize("who", [0, 2])
def test_holding_the_interpreter_lock_is_no_death(who: int) -> None:
    outcomes = Ranks(hold_the_lock, TOPOLOGY, who, 3.0, 20.0).finish()
    assert [outcome.exit_code for outcome in outcomes.values()] == [0, 0, 0]
    assert errors(outcomes) == []


def test_a_signal_while_a_rank_loads_does_not_blame_that_rank() -> None:
    ranks = Ranks(hold_the_lock, TOPOLOGY, 2, 10.0, 60.0)
    ranks.wait_for("holding", 2)
    time.sleep(6)  # longer than a silent peer is suspected for when a collective broke
    told = ranks.send_signal(signal.SIGTERM, 0, 1, 2)
    outcomes = ranks.finish()
    assert errors(outcomes) == [f"{ERROR}stopped by SIGTERM at step 0 in phase 'load'"]
    assert {rank: outcome.exit_code for rank, outcome in outcomes.items()} == dict.fromkeys(range(3), RUN_AGAIN)
    assert outcomes[0].ended - told < SOON


def test_a_run_that_was_suspended_as_a_whole_goes_on() -> None:
    ranks, _ = start_and(signal.SIGSTOP, 0, 1, 2, timeout=4)
    time.sleep(5)
    ranks.send_signal(signal.SIGCONT, 0, 1, 2)
    time.sleep(1.5)
    ranks.send_signal(signal.SIGTERM, 0, 1, 2)
    assert errors(ranks.finish()) == [f"{ERROR}stopped by SIGTERM at step 5 in phase 'work'"]


# ---- errors and signals ----------------------------------------------------------------------------------------------


def fail(topology: Topology, launch: Launch, who: int, error: Exception) -> None:
    heartbeat = enter(topology, launch, 60)
    heartbeat.phase("train", 2)
    time.sleep(0.3)
    try:
        if launch.rank == who:
            raise error
        sleep_in_c()
    except Exception as raised:
        heartbeat.end_because(raised)


@pytest.mark.parametrize("who", [0, 2])
def test_an_error_of_the_input_ends_the_run_with_its_code(who: int) -> None:
    outcomes = Ranks(fail, TOPOLOGY, who, DataError("row 3 is empty")).finish()
    assert len(errors(outcomes)) == 1
    assert errors(outcomes)[0].endswith("failed at step 2 in phase 'train': row 3 is empty")
    assert [outcome.exit_code for outcome in outcomes.values()] == [2, 2, 2]
    assert "Traceback" not in "".join(outcome.output for outcome in outcomes.values())


def test_an_error_that_a_rerun_would_meet_again_does_not_ask_for_one() -> None:
    outcomes = Ranks(fail, TOPOLOGY, 1, NonFiniteError("the loss of step 2 is not finite")).finish()
    assert [outcome.exit_code for outcome in outcomes.values()] == [1, 1, 1]


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape mismatch")])
def test_a_defect_is_shown_where_it_happened(error: Exception) -> None:
    outcomes = Ranks(fail, TOPOLOGY, 2, error).finish()
    assert len(errors(outcomes)) == 1
    assert f"ref/a rank 0 (global rank 2, host {socket.gethostname()}) failed at step 2" in errors(outcomes)[0]
    assert f"{type(error).__name__}: {error}" in errors(outcomes)[0]
    assert "Traceback" in outcomes[2].output and "in fail" in outcomes[2].output
    assert "Traceback" not in outcomes[0].output + outcomes[1].output
    assert [outcome.exit_code for outcome in outcomes.values()] == [FAILED] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_all_is_told_once(number: signal.Signals) -> None:
    ranks, told = start_and(number, 2, 1, 0)
    outcomes = ranks.finish()
    assert errors(outcomes) == [f"{ERROR}stopped by {number.name} at step 5 in phase 'work'"]
    assert all(outcome.exit_code == RUN_AGAIN and outcome.ended - told < SOON for outcome in outcomes.values())


def test_a_death_explains_the_signals_of_the_launcher_that_saw_it() -> None:
    ranks, killed = start_and(signal.SIGKILL, 2)
    ranks.send_signal(signal.SIGTERM, 0, 1)
    outcomes = ranks.finish()
    assert len(errors(outcomes)) == 1
    assert "ref/a rank 0" in errors(outcomes)[0] and "died" in errors(outcomes)[0]
    assert all(outcomes[rank].ended - killed < SOON for rank in (0, 1))


def test_a_signal_to_one_rank_ends_all_and_names_it() -> None:
    ranks, _ = start_and(signal.SIGTERM, 2)
    (message,) = errors(ranks.finish())
    assert "ref/a rank 0 (global rank 2" in message and "was stopped by SIGTERM at step 5" in message


# ---- orders ----------------------------------------------------------------------------------------------------------


def train_in_steps(topology: Topology, launch: Launch, silence: float, step_seconds: float) -> None:
    """What the training loop does: a step, then a look whether to stop; the references work for ever."""
    heartbeat = enter(topology, launch, silence)
    heartbeat.phase("train", 1)
    time.sleep(0.5)  # until global rank 0 has heard that
    if launch.rank != 0:
        say("going")
        sleep_in_c()
    heartbeat.orders.take()
    say("going")
    for step in range(1, 100):
        heartbeat.phase("train", step)
        time.sleep(step_seconds)
        if heartbeat.orders.stop is not None:
            heartbeat.end_because(Stopped(f"{heartbeat.orders.stop.reason}; step {step} is saved"))


def start_training(silence: float = 60, step_seconds: float = 0.2) -> Ranks:
    started = Ranks(train_in_steps, TOPOLOGY, silence, step_seconds)
    started.wait_for("going", 0, 1, 2)
    return started


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_signal_to_any_rank_lets_the_policy_finish_its_step(rank: int) -> None:
    ranks = start_training()
    told = ranks.send_signal(signal.SIGUSR1, rank)
    outcomes = ranks.finish()
    (message,) = errors(outcomes)
    assert re.search(r"stopped by SIGUSR1: the run stops as soon as its work is saved; step \d+ is saved", message)
    assert all(outcome.exit_code == RUN_AGAIN and outcome.ended - told < SOON for outcome in outcomes.values())


def test_a_signal_that_launchers_repeat_at_once_is_one() -> None:
    ranks = start_training(step_seconds=2.0)
    for _ in range(3):
        ranks.send_signal(signal.SIGTERM, 0, 1, 2)
        time.sleep(0.2)
    outcomes = ranks.finish()
    assert "is saved" in errors(outcomes)[0] and len(errors(outcomes)) == 1


def test_a_second_signal_ends_the_run_at_once() -> None:
    ranks = start_training(step_seconds=30.0)
    ranks.send_signal(signal.SIGINT, 0)
    time.sleep(SAME_SIGNAL_SECONDS + 1)
    told = ranks.send_signal(signal.SIGINT, 0)
    outcomes = ranks.finish()
    assert errors(outcomes) == [f"{ERROR}stopped by SIGINT (the second signal) at step 1 in phase 'train'"]
    assert all(outcome.exit_code == FAILED and outcome.ended - told < SOON for outcome in outcomes.values())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_reference_lets_the_policy_save_what_it_has(number: signal.Signals) -> None:
    ranks = start_training(silence=3)
    ranks.send_signal(number, 2)
    outcomes = ranks.finish(leave_behind=(2,))
    (message,) = errors(outcomes)
    assert re.search(
        r"ref/a rank 0 .*(died|is stuck).*step 1 in phase 'train'. The policy saves what it has; ", message
    )
    assert all(outcomes[rank].exit_code == RUN_AGAIN for rank in (0, 1))


def hang(topology: Topology, launch: Launch, who: int) -> None:
    """One process lives, but its main thread makes no progress."""
    rendezvous = open_rendezvous(launch, 30)
    heartbeat = Heartbeat(topology, rendezvous, limits(60, train=2.0), lambda: FAILED, NO_RUN)
    heartbeat.start()
    if launch.rank == who:
        heartbeat.phase("train", 4)
        sleep_in_c()
    for step in range(100):
        heartbeat.phase("train", step)
        time.sleep(0.2)


@pytest.mark.parametrize("who", [0, 2])
def test_a_main_thread_without_progress_is_named_and_shows_where_it_is(who: int) -> None:
    outcomes = Ranks(hang, TOPOLOGY, who).finish()
    (message,) = errors(outcomes)
    name = "policy rank 0" if who == 0 else "ref/a rank 0"
    assert re.search(
        rf"no progress for [23] s \(topology.deadlines.train\): {name} .* at step 4 in phase 'train'$", message
    )
    assert "in sleep_in_c" in outcomes[who].output
    assert "in sleep_in_c" not in outcomes[1].output


# ---- the normal end --------------------------------------------------------------------------------------------------


def finish_in_order(topology: Topology, launch: Launch, delays: tuple[float, float, float]) -> None:
    rendezvous = open_rendezvous(launch, 30)
    heartbeat = Heartbeat(topology, rendezvous, limits(60), lambda: FAILED, NO_RUN)
    heartbeat.start()
    split(topology, rendezvous, share_gpus=False)
    rendezvous.store.set(f"here/{launch.rank}", "")
    rendezvous.store.wait([f"here/{rank}" for rank in range(topology.world_size)])
    time.sleep(delays[launch.rank])
    leave()
    heartbeat.done()


@pytest.mark.parametrize("delays", [(0.0, 0.0, 2.0), (0.0, 0.0, 0.0), (2.0, 1.0, 0.0)])
def test_ranks_may_finish_in_any_order(delays: tuple[float, float, float]) -> None:
    outcomes = Ranks(finish_in_order, TOPOLOGY, delays).finish()
    assert [outcome.exit_code for outcome in outcomes.values()] == [0, 0, 0], outcomes
    assert errors(outcomes) == []


def meet_strangers(topology: Topology, launch: Launch) -> None:
    """Whoever connects to the port without the run's token is not heard."""
    heartbeat = enter(topology, launch, 60)
    if launch.rank == 2:
        address, port = open_rendezvous(launch, 30).store.get("heartbeat").decode().split()
        strangers = (
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"rank": 1, "proof": "guess"}\n{}\n',
            b"[1]\n",
            b"\xff" * 100_000,
            b"[" * 60_000 + b"\n",
            b"",
        )
        for greeting in strangers:
            with socket.create_connection((address, int(port))) as stranger:
                stranger.sendall(greeting)
                time.sleep(0.1)
    time.sleep(2)
    heartbeat.done()


def test_a_port_scanner_is_no_peer() -> None:
    outcomes = Ranks(meet_strangers, TOPOLOGY).finish()
    assert [outcome.exit_code for outcome in outcomes.values()] == [0, 0, 0], outcomes
    assert errors(outcomes) == []
