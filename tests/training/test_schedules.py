"""The learning rate against its definition, point by point."""

import math

import pytest

from training.options import Schedule
from training.schedules import share_of_peak


def test_warm_up_rises_by_equal_increments_from_the_first_step():
    schedule = Schedule(max_steps=100, warmup_steps=4)
    assert [share_of_peak(schedule, step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_is_half_way_in_the_middle_and_reaches_the_final_share():
    schedule = Schedule(max_steps=110, warmup_steps=10, decay="cosine", final_fraction=0.1)
    assert share_of_peak(schedule, 10) == 1.0
    assert share_of_peak(schedule, 60) == pytest.approx(0.55)
    assert share_of_peak(schedule, 35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert share_of_peak(schedule, 110) == pytest.approx(0.1)


def test_linear_decay_takes_the_last_fraction_of_the_steps_alone():
    schedule = Schedule(max_steps=100, decay="linear", decay_fraction=0.4, final_fraction=0.0)
    assert [share_of_peak(schedule, step) for step in (0, 59, 60, 80, 99)] == pytest.approx([1, 1, 1, 0.5, 1 / 40])


def test_no_decay_and_warm_up_longer_than_the_run_are_defined():
    assert share_of_peak(Schedule(max_steps=10, decay_fraction=0.0), 9) == 1.0
    assert share_of_peak(Schedule(max_steps=5, warmup_steps=20), 4) == 0.25
