"""Tables of papers as data, and the recipe that each of their rows is at a scale."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rrmsdk.errors import FieldError, did_you_mean
from rrmsdk.schema import value
from rrmsdk.schema.recipe import Recipe, Schedule, TrainSpec, VerifySpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import Value

HERE = Path(__file__).parent
Fields = dict[str, Any]
AttackName = Literal["apgd", "pgd", "autoattack"]


class Paper(Value):
    """What the paper prints: per cent, and minutes of training (of the teacher besides, in `with_teacher`). None: not
    at hand. source: where, if not where the table says."""

    clean: float | None = None
    apgd: float | None = None
    pgd: float | None = None
    autoattack: float | None = None
    minutes: float | None = None
    with_teacher: float | None = None
    source: str = ""

    def figure(self, name: str) -> float | None:
        return getattr(self, name)


class Swept(Value):
    """A row that is a sweep: its points are the figure."""

    field: str
    values: str


class Row(Value):
    """One model of a table.

    student: an architecture, or fields of StudentSpec.
    teacher: rows (`rn18`, `rrm-1/rn18`, either with `@epoch=N` of the paper's epochs) or references (`hub:NAME`).
    train: fields of TrainSpec that differ from the table's.
    data: other than the table's.
    rdt: settings of `rrmsdk.robustify`; the row then trains on what the teacher makes of the data.
    shared: trained once, whatever the number of seeds: a teacher.
    skip: why it cannot be run here; its figures are shown all the same.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    student: str | Fields
    method: Fields
    teacher: str | tuple[str, ...] = ()
    train: Fields = Field(default_factory=dict)
    data: str | None = None
    rdt: Fields | None = None
    sweep: Swept | None = None
    shared: bool = False
    paper: Paper = Paper()
    note: str = ""
    skip: str = ""

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher


class Claim(Value):
    """Says that `more` >= times x `less` + by. Figures are ROW.clean, ROW.ATTACK (per cent), ROW.minutes and
    ROW.with_teacher; `by` is in their unit."""

    says: str
    more: str
    less: str
    times: float = 1.0
    by: float = 0.0


class Table(Value):
    """A table of a paper.

    source: of the figures in it.
    judged: the paper's evaluations; the first is the headline.
    natural, sat: rows that training times are divided by.
    """

    name: str = ""
    title: str
    source: str
    data: str = "cifar10"
    threat: str = "linf:8/255"
    train: Fields = Field(default_factory=dict)
    judged: tuple[VerifySpec, ...]
    natural: str | None = None
    sat: str | None = None
    notes: str = ""
    row: tuple[Row, ...]
    claim: tuple[Claim, ...] = ()

    def find(self, name: str) -> Row:
        """Raises FieldError: no such row."""
        for row in self.row:
            if row.name == name:
                return row
        raise FieldError(f"table {self.name} has no row '{name}'.{did_you_mean(name, [row.name for row in self.row])}")


class Scale(Value):
    """What the paper's settings become on smaller hardware.

    says: for the head of the result file.
    data: a data set of the paper to fields of DataSpec; one that is not here stays.
    threat: the same for threats.
    students: an architecture of the paper to fields of StudentSpec.
    teachers: a row (TABLE/ROW) to a reference that takes its place.
    share: of the paper's epochs that are trained; most: epochs at most. Milestones and stopped teachers move along.
    train: laid over what the rows say.
    methods: laid over the rows of one method: `train`, and fields of the method.
    judged: an attack of the paper to the fields of VerifySpec it becomes.
    values: of a sweep. rdt: settings laid over a row's.
    smoke: claims are not expected to hold.
    """

    name: str = ""
    says: str
    data: dict[str, Fields] = Field(default_factory=dict)
    threat: dict[str, str] = Field(default_factory=dict)
    students: dict[str, Fields] = Field(default_factory=dict)
    teachers: dict[str, str] = Field(default_factory=dict)
    share: Annotated[float, Field(gt=0)] = 1.0
    most: float | None = None
    train: Fields = Field(default_factory=dict)
    methods: dict[str, Fields] = Field(default_factory=dict)
    judged: dict[AttackName, Fields] = Field(default_factory=dict)
    values: str | None = None
    rdt: Fields = Field(default_factory=dict)
    smoke: bool = False

    def epochs(self, of_paper: float) -> float:
        return min(of_paper * self.share, self.most or float("inf"))

    def judge(self, spec: VerifySpec) -> VerifySpec:
        return value.parse(VerifySpec, self.judged.get(spec.attack, {})) if spec.attack in self.judged else spec


def table_names() -> list[str]:
    return sorted(path.stem for path in (HERE / "tables").glob("*.toml"))


def table(name: str) -> Table:
    """Raises FieldError: no such table."""
    if name not in table_names():
        raise FieldError(f"unknown table '{name}'.{did_you_mean(name, table_names())} There are {table_names()}")
    return value.read(Table, HERE / "tables" / f"{name}.toml").model_copy(update={"name": name})


def scale(name: str) -> Scale:
    """Raises FieldError: no such scale."""
    known = tomllib.loads((HERE / "scales.toml").read_text(encoding="utf-8"))
    if name not in known:
        raise FieldError(f"unknown scale '{name}'. There are {sorted(known)}")
    return value.parse(Scale, known[name], f"scale {name}").model_copy(update={"name": name})


def row_of(reference: str, inside: Table) -> tuple[Table, Row, float | None]:
    """The row that a teacher's reference names, and at which of the paper's epochs it is stopped."""
    where, _, epoch = reference.partition("@epoch=")
    of, slash, name = where.rpartition("/")
    found = table(of) if slash and of != inside.name else inside
    return found, found.find(name), float(epoch) if epoch else None


def is_row(reference: str) -> bool:
    return not reference.startswith(("hub:", "path:"))


def folder(runs: Path, table: Table, row: Row, seed: int) -> Path:
    return runs / table.name / f"{row.name}-seed{seed}"


def recipe(table: Table, row: Row, scale: Scale, seed: int, runs: Path) -> Recipe:
    """The row as `rrmsdk train` takes it."""
    student = scale.students.get(arch(row), {"arch": row.student} if isinstance(row.student, str) else row.student)
    if row.method["name"] == "rrm":
        student = {"width": "teacher"} | student
    own = scale.methods.get(row.method["name"], {})
    method = row.method | {name: given for name, given in own.items() if name != "train"}
    references = [teacher(one, table, scale, runs) for one in row.teachers] if row.rdt is None else []
    fields = {
        "name": f"{table.name}-{row.name}", "notes": row.note, "student": student, "data": data(table, row, scale),
        "threat": threat(table, scale).model_dump(mode="json"), "method": method, "seed": seed,
        "teacher": references[0] if len(references) == 1 else references or None,
        "train": _train(table, row, scale) | own.get("train", {}), "verify": scale.judge(table.judged[0]),
    }  # fmt: skip
    if row.rdt is not None:
        # What the teacher made is all trained on; a fraction was taken, if any, when it was made.
        whole = {name: given for name, given in fields["data"].items() if name != "fraction"}
        fields["data"] = whole | {"name": f"path:{folder(runs, table, row, seed) / 'rdt'}"}
    return value.parse(Recipe, fields, f"{table.name}/{row.name}")


def arch(row: Row) -> str:
    """The paper's network."""
    return row.student if isinstance(row.student, str) else row.student["arch"]


def arch_here(row: Row, scale: Scale) -> str:
    """The network that stands for it, `@` its width where that is not 1."""
    student = scale.students.get(arch(row), {"arch": arch(row)})
    return student["arch"] + (f"@{student['width_mult']:g}" if "width_mult" in student else "")


def data(table: Table, row: Row, scale: Scale) -> Fields:
    named = row.data or table.data
    return scale.data.get(named, {"name": named})


def threat(table: Table, scale: Scale) -> ThreatModel:
    return ThreatModel.parse(scale.threat.get(table.threat, table.threat))


def teacher(reference: str, inside: Table, scale: Scale, runs: Path) -> str:
    """The reference of a teacher that is a row: its run's folder, or what the scale puts in its place."""
    if not is_row(reference):
        return reference
    table, row, epoch = row_of(reference, inside)
    if (replaced := scale.teachers.get(f"{table.name}/{row.name}")) is not None:
        return replaced
    at = "" if epoch is None else f"@epoch={_kept(epoch, _of_paper(table, row), scale)}"
    return f"path:{folder(runs, table, row, 0)}{at}"


def _train(table: Table, row: Row, scale: Scale) -> Fields:
    fields: Fields = table.train | row.train
    whole = _of_paper(table, row)
    epochs = scale.epochs(whole)
    fields = {**fields, "epochs": epochs}
    if "keep_epochs" in fields:
        fields["keep_epochs"] = sorted({_kept(epoch, whole, scale) for epoch in fields["keep_epochs"]})
    schedule = fields.get("schedule", {})
    if "milestones" in schedule:
        schedule = schedule | {"milestones": [one / whole * epochs for one in schedule["milestones"]]}
    if schedule.get("kind") == "exponential":  # once an epoch, so that the run ends as low as the paper's
        schedule = schedule | {"gamma": schedule.get("gamma", Schedule().gamma) ** (whole / epochs)}
    if schedule:
        fields["schedule"] = schedule
    return fields | scale.train


def _kept(epoch: float, whole: float, scale: Scale) -> int:
    return max(1, round(epoch / whole * scale.epochs(whole)))


def _of_paper(table: Table, row: Row) -> float:
    return (table.train | row.train).get("epochs", TrainSpec().epochs)
