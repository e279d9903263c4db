"""Three fields and more: Optuna proposes (TPE), the sweep runs. Asked and told, so no heartbeat is needed: a trial that
a crash left running is run to its end under its own number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from rrmsdk.errors import FieldError, MissingExtraError
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.sweep import Choices, Point, Span, Sweep
from rrmsdk.sweeping import one, points
from rrmsdk.sweeping.points import Task

DATABASE, STUDY = "optuna.db", "sweep"


def space(swept: Sweep) -> dict[str, Any]:
    """Optuna's distribution of each field, after the recipe took both ends, or each choice.

    Raises:
        FieldError: an unknown field, or a value that it does not take.
        MissingExtraError: Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise MissingExtraError("optuna", "a search")
    return {field: _distribution(swept.recipe, field, of) for field, of in swept.ranges.items()}


def _distribution(base: Recipe, field: str, of: Span | Choices) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(of, Choices):
        for given in of.given:
            points.placed(base, {field: given})
        return CategoricalDistribution([json.dumps(given) for given in of.given])  # a database keeps no tables
    if of.count is not None:
        raise FieldError(f"{field}: a search takes any value in {of.low:g}..{of.high:g}; leave :{of.count} out")
    log = of.scale == "log"
    if points.whole(base, field, of):
        return IntDistribution(int(of.low), int(of.high), log=log)
    return FloatDistribution(of.low, of.high, log=log)


def done(
    swept: Sweep, distributions: dict[str, Any], trials: int, jobs: int, known: dict[str, Point]
) -> Iterator[Point]:
    """Each point as it is done; trials are asked for in rounds of `jobs`."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    swept.path.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{swept.path / DATABASE}")
    try:
        study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True)
        while asked := _unfinished(study, distributions) or _ask(study, distributions, trials, jobs, swept.recipe.seed):
            numbers: dict[str, list[int]] = {}
            tasks: dict[str, Task] = {}
            for number, params in asked.items():
                task = points.task(swept.recipe, _read(params, distributions))
                tasks[task.name] = task
                numbers.setdefault(task.name, []).append(number)
            for point in _results(tasks, swept, jobs, known):
                yield point
                known[point.name] = point
                for number in numbers[point.name]:
                    _tell(study, number, point, swept)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _results(tasks: dict[str, Task], swept: Sweep, jobs: int, known: dict[str, Point]) -> Iterator[Point]:
    yield from [known[name] for name in tasks if name in known]
    new = [task for name, task in tasks.items() if name not in known]
    yield from one.done(new, swept.path / "points", swept.screening, jobs)


def _unfinished(study: Any, distributions: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What a crash left running; a trial that it left without all its values is told as failed."""
    from optuna.trial import TrialState

    left = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.params.keys() == distributions.keys():
            left[trial.number] = trial.params
        else:
            study.tell(trial.number, state=TrialState.FAIL)
    return left


def _ask(study: Any, distributions: dict[str, Any], trials: int, jobs: int, seed: int) -> dict[int, dict[str, Any]]:
    import numpy as np
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    had = study.get_trials(deepcopy=False)
    left = trials - sum(trial.state != TrialState.FAIL for trial in had)
    asked = {}
    for number in range(len(had), len(had) + min(jobs, left)):
        # A function of (seed, number), so that a search that continues does not repeat its first proposals.
        study.sampler = TPESampler(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        trial = study.ask(fixed_distributions=distributions)
        asked[trial.number] = trial.params
    return asked


def _read(params: dict[str, Any], distributions: dict[str, Any]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution

    return {
        field: json.loads(params[field]) if isinstance(of, CategoricalDistribution) else params[field]
        for field, of in distributions.items()
    }


def _tell(study: Any, number: int, point: Point, swept: Sweep) -> None:
    from optuna.trial import TrialState

    if point.screened is None:
        study.tell(
            number, state=TrialState.PRUNED
        )  # TPE counts it among the bad ones; a failed trial teaches it nothing
    else:
        study.tell(number, point.screened.score(swept.by))
