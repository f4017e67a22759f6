"""The learning rate over the steps: a pure function, so nothing of it is in a checkpoint."""

import math

from training.options import Schedule


def share_of_peak(schedule: Schedule, step: int) -> float:
    """Warm-up to 1 by equal increments, then 1, then down to final_fraction over the last decay_fraction of the steps.

    Step 0 takes 1 / warmup_steps of the peak (never nothing), the last step ends one increment above final_fraction.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    length = round(schedule.max_steps * schedule.decay_fraction)
    length = min(length, schedule.max_steps - schedule.warmup_steps)
    done = step - (schedule.max_steps - length)
    if length <= 0 or done < 0:
        return 1.0
    progress = min(done / length, 1.0)
    shape = 1 - progress if schedule.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final_fraction + (1 - schedule.final_fraction) * shape
