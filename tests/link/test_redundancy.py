"""What is repeated beforehand follows from what a peer has lost so far."""

from __future__ import annotations

import random

import pytest

from edgellama.link.redundancy import JUDGED_MAX, LossEstimate, Redundancy


def after(loss: float, packets: int, seed: int = 1, burst: float = 0.0) -> LossEstimate:
    """Return the estimate of a path after so many packets; ``burst``: how likely loss goes on."""
    dice = random.Random(seed)
    estimate = LossEstimate()
    lost = False
    for number in range(packets):
        lost = dice.random() < (burst if lost and burst else loss)
        if lost:
            estimate.on_lost(number)
        else:
            estimate.on_arrived(1)
    return estimate


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (0.0, Redundancy.NONE),
        (0.0005, Redundancy.NONE),
        (0.01, Redundancy.PARITY),
        (0.02, Redundancy.PARITY),
        (0.05, Redundancy.DUPLICATE),
        (0.2, Redundancy.DUPLICATE),
    ],
)
def test_loss_at_random_calls_for_parity_and_more_of_it_for_duplicates(
    loss: float, wanted: Redundancy
) -> None:
    estimates = [after(loss, 4000, seed) for seed in range(40)]
    assert [estimate.redundancy for estimate in estimates].count(wanted) >= 30
    mean = sum(estimate.ratio for estimate in estimates) / len(estimates)
    assert mean == pytest.approx(loss, rel=0.2, abs=0.0005)


def test_loss_in_bursts_calls_for_duplicates() -> None:
    chosen = [after(0.004, 4000, seed, burst=0.6).redundancy for seed in range(40)]
    assert chosen.count(Redundancy.DUPLICATE) >= 30


def test_the_first_loss_counts_for_little_and_outlives_its_time_not_long() -> None:
    estimate = LossEstimate()
    assert estimate.redundancy is Redundancy.NONE
    estimate.on_lost(3)
    assert estimate.redundancy is Redundancy.PARITY, "of 10 packets one: not a tenth"
    for _ in range(3 * JUDGED_MAX):
        estimate.on_arrived(1)
    assert estimate.redundancy is Redundancy.NONE


def test_what_was_only_late_was_not_lost() -> None:
    estimate = LossEstimate()
    for number in range(0, 40, 2):
        estimate.on_lost(number)
    estimate.on_late(20)
    assert estimate.ratio == 0.0
    estimate.on_late(1)
    assert estimate.ratio == 0.0
