"""The learning rate as a pure function of the step."""

from __future__ import annotations

from math import cos, pi

from rrmsdk.schema.recipe import Schedule


def factor(schedule: Schedule, step: int, total: int, per_epoch: int) -> float:
    """What `lr` is multiplied by at `step` of `total`, each counted from 0.

    Sources: cosine per step, Vaishnavi et al. 2022, table 5; triangular, Wong et al. 2020; onecycle with cosine halves,
    Smith and Topin 2018; multistep, Madry et al. 2018 and Rice et al. 2020; exponential, Maroto et al. 2022.

    Onecycle has its top at `peak` of the run and its end after the last step, as the other kinds. Torch's OneCycleLR
    counts the steps less one: its top comes a step sooner, its fall is a step ahead, and its last step is at `final`.
    """
    done = step / total
    match schedule.kind:
        case "cosine":
            return schedule.final + (1 - schedule.final) * (1 + cos(pi * done)) / 2
        case "triangular":
            if done < schedule.peak:
                return min(1.0, (step + 1) / total / schedule.peak)  # the top may lie between two steps
            return (1 - done) / (1 - schedule.peak)
        case "onecycle":
            if done < schedule.peak:
                return 0.04 + 0.96 * (1 - cos(pi * done / schedule.peak)) / 2  # starts at lr/25
            fall = (done - schedule.peak) / (1 - schedule.peak)
            return schedule.final + (1 - schedule.final) * (1 + cos(pi * fall)) / 2
        case "multistep":
            return schedule.gamma ** sum(step >= milestone * per_epoch for milestone in schedule.milestones)
        case "exponential":
            return schedule.gamma ** (step // per_epoch)
        case "constant":
            return 1.0
