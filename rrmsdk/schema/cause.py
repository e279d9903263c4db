"""What starts a run, and all that is looked at to say so."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from rrmsdk.schema.value import Value

Kind = Literal["cron", "data", "teacher", "drift", "regression", "manual"]
State = Literal["running", "promoted", "kept", "awaiting", "blocked", "failed", "suspended", "cancelled"]


class Cause(Value):
    """Why a run begins.

    key: the same for the same reason, however often it is seen: one run for each key.
    says: one sentence for a person.
    propose: somebody is to be asked before anything is trained.
    """

    kind: Kind
    key: str
    says: str
    propose: bool = False


class DataSeen(Value):
    """A data set, as it was.

    digest: of a folder; a commit on the Hub.
    rows: train images; None: nobody counted them.
    changed: when it last did.
    """

    digest: str
    rows: Annotated[int, Field(ge=0)] | None = None
    changed: AwareDatetime | None = None


class Window(Value):
    """What a server saw in some stretch of time.

    values: by the name of the statistic.
    """

    id: str
    ended: AwareDatetime
    images: Annotated[int, Field(ge=0)] = 0
    values: dict[str, float]


class Observed(Value):
    """The world at one moment, as far as a job's triggers look at it. What is not in it was not looked at.

    since: when the job was first seen; slots before that were not missed. None: it was always there.
    data: by source; teachers: commit by reference; drift: windows by address, in any order.
    suites: which attacks the name of an attack means now.
    champion: digest of the champion's bundle, and by which suite it was judged; None: there is none.
    """

    since: AwareDatetime | None = None
    data: dict[str, DataSeen] = Field(default_factory=dict)
    teachers: dict[str, str] = Field(default_factory=dict)
    drift: dict[str, tuple[Window, ...]] = Field(default_factory=dict)
    suites: dict[str, str] = Field(default_factory=dict)
    champion: str | None = None
    champion_suite: str | None = None


class Past(Value):
    """A run that was.

    key: of its cause.
    waited: stretches in which nobody worked on it: it was blocked, or waited for a person.
    observed: what was looked at when it began; of teachers, the commits that it trained with.
    """

    key: str
    state: State
    began: AwareDatetime
    ended: AwareDatetime | None = None
    waited: tuple[tuple[AwareDatetime, AwareDatetime], ...] = ()
    observed: Observed = Field(default_factory=Observed)
