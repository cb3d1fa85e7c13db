"""Who is to blame, from what global rank 0 knows."""

import pytest

from mrpo_ds.distributed.verdict import (
    SUSPECT_SECONDS,
    Peer,
    Word,
    judge_death,
    judge_silence,
    judge_trouble,
)
from tests.distributed.harness import make_topology

TOPOLOGY = make_topology(2, a=2, b=1)
NOW = 1000.0


def word(
    status: str = "running", reason: str = "", phase: str = "train", step: int = 7, code: int | None = None
) -> Word:
    return Word("node1", phase, step, status, reason, code)


def peers(**silent: float) -> dict[int, Peer]:
    """All ranks heard just now, but rank3=60 for instance for 60 s."""
    return {rank: Peer(word(), NOW - silent.get(f"rank{rank}", 0)) for rank in range(5)}


def test_an_error_of_ones_own_is_told_with_role_rank_host_phase_and_step() -> None:
    verdict = judge_trouble(TOPOLOGY, peers(), [(3, word("failed", "row 5 is empty", "score train", 4, 2))], NOW)
    assert verdict.message == (
        "ref/a rank 1 (global rank 3, host node1) failed at step 4 in phase 'score train': row 5 is empty"
    )
    assert (verdict.culprit, verdict.exit_code) == (3, 2)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_an_error_explains_broken_collectives_and_signals(order: tuple[int, int, int]) -> None:
    told = [(1, word("failed", "a defect")), (0, word("broken", "echo")), (4, word("stopping", "stopped by SIGTERM"))]
    verdict = judge_trouble(TOPOLOGY, peers(), [told[index] for index in order], NOW)
    assert verdict.culprit == 1


def test_a_silent_peer_explains_a_broken_collective() -> None:
    told = [(0, word("broken", "no answer"))]
    verdict = judge_trouble(TOPOLOGY, peers(rank2=SUSPECT_SECONDS + 1, rank4=60), told, NOW)
    assert verdict.culprit == 4
    assert verdict.message.startswith("ref/b rank 0 (global rank 4, host node1) is stuck or cut off: no sign of life")
    assert "Seen first by policy rank 0 (global rank 0, host node1): no answer" in verdict.message


def test_a_pause_does_not_explain_an_error_of_ones_own() -> None:
    verdict = judge_trouble(TOPOLOGY, peers(rank4=60), [(1, word("failed", "out of memory"))], NOW)
    assert verdict.culprit == 1


def test_a_broken_bridge_without_a_lost_peer_says_what_everyone_does() -> None:
    known = peers() | {4: Peer(word(phase="score train", step=8), NOW)}
    verdict = judge_trouble(TOPOLOGY, known, [(0, word("broken", "no answer for 9 s"))], NOW)
    assert verdict.message.endswith(
        "failed at step 7 in phase 'train': no answer for 9 s. Meanwhile ref/a is at step 7 in phase 'train'; "
        "ref/b is at step 8 in phase 'score train'."
    )


def test_a_signal_to_all_blames_nobody() -> None:
    told = [(3, word("stopping", "stopped by SIGTERM")), (0, word("stopping", "stopped by SIGTERM"))]
    verdict = judge_trouble(TOPOLOGY, peers(rank1=60), told, NOW)
    assert verdict.message == "stopped by SIGTERM at step 7 in phase 'train'"
    assert verdict.culprit is None


def test_a_signal_to_one_names_it_and_who_is_not_there() -> None:
    known = peers() | {4: Peer(None, NOW - 9)}
    verdict = judge_trouble(TOPOLOGY, known, [(2, word("stopping", "stopped by SIGTERM"))], NOW)
    assert verdict.message == (
        "ref/a rank 0 (global rank 2, host node1) was stopped by SIGTERM at step 7 in phase 'train'; "
        "not there yet: ref/b rank 0 (global rank 4)"
    )


def test_death_and_silence_are_told_apart() -> None:
    assert judge_death(TOPOLOGY, 2, word()).message == (
        "ref/a rank 0 (global rank 2, host node1) died: it is gone without a word, last seen at step 7 in phase 'train'"
    )
    assert judge_silence(TOPOLOGY, 2, Peer(word(), NOW - 30), NOW).message == (
        "ref/a rank 0 (global rank 2, host node1) is stuck or cut off: no sign of life for 30 s, "
        "last seen at step 7 in phase 'train'"
    )
    never = judge_silence(TOPOLOGY, 2, Peer(None, NOW - 30), NOW)
    assert never.message == "ref/a rank 0 (global rank 2) never reported; waited 30 s"
