"""How a run stands when its process ends."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rrmsdk.errors import BlockedError, HubError, RrmError, SuspendedError
from rrmsdk.retraining.journal import State
from rrmsdk.retraining.objects import full
from rrmsdk.schema.decision import Decision
from rrmsdk.schema.value import SCHEMA_VERSION, Value

FAILED = 1
_CODES = {"promoted": 0, "kept": 0, "blocked": 76, "awaiting": 77}


class Outcome(Value):
    """One run of a job, as far as it came.

    run: its name in `rrmsdk schedule history`.
    cause: why it began; one run for each.
    why: in one sentence.
    made: digest of what each stage gave.
    commit: that was promoted.
    """

    schema_version: int = SCHEMA_VERSION
    job: str
    run: str
    cause: str
    state: State
    why: str
    made: dict[str, str] = Field(default_factory=dict)
    decision: Decision | None = None
    commit: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return _CODES.get(self.state, FAILED)

    def summary(self) -> str:
        """The state, and each rule of the gate."""
        decided = f"\n{self.decision.summary()}" if self.decision else ""
        warned = "".join(f"\nWARNING: {warning}" for warning in self.warnings)
        return f"{self.job} {self.run}: {self.state}. {self.why}{decided}{warned}"


def stands(exc: Exception) -> tuple[State, str]:
    """How a run stands after an error, and why: what may pass leaves it blocked, the rest ends it."""
    says = str(exc) if isinstance(exc, RrmError) else f"{type(exc).__name__}: {exc}"
    if isinstance(exc, SuspendedError):
        return "suspended", says
    if full(exc):
        return "blocked", f"disk: {says}"
    if isinstance(exc, BlockedError):
        return "blocked", f"{exc.on}: {says}"
    if isinstance(exc, HubError):
        return "blocked", f"hub: {says}"
    return "failed", says


def told(outcome: Outcome) -> dict[str, Any]:
    """What somebody who is notified reads."""
    decision = outcome.decision and {"verdict": outcome.decision.verdict, "says": outcome.decision.summary()}
    return outcome.model_dump(mode="json", exclude={"decision"}) | {"decision": decision}
