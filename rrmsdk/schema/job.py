"""A job: a model that is made again on its own, as one TOML file. What starts a run, and what a run may do."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, ValidationError, field_validator, model_validator

from rrmsdk.errors import FieldError, RefError, did_you_mean
from rrmsdk.schema import value
from rrmsdk.schema.curve import read_radii
from rrmsdk.schema.recipe import Recipe, VerifySpec
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.secret import Secret
from rrmsdk.schema.value import Seed, Value, to_json

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
ADDRESS = r"^https?://[^\s/]\S*$"
Event = Literal["promoted", "kept", "awaiting", "blocked", "failed", "suspended"]


class Judge(Value):
    """How champion and challenger are attacked: both alike, on the same test images. See VerifySpec.

    images: how many of the test split, from its start; 0: all that are not held out for the audit.
    curve: radii at which the challenger's robust accuracy under `fast` goes into its bundle, such as 0..16/255:8; they
        decide nothing. None: no curve.
    curve_images: of those images, for the curve; 0: all.
    """

    attack: Literal["autoattack", "fast", "apgd", "pgd"] = "autoattack"
    version: Literal["standard", "plus", "rand"] = "standard"
    engine: Literal["native", "reference"] = "native"
    images: Annotated[int, Field(ge=0)] = 0
    batch: Annotated[int, Field(ge=1)] = 256
    seed: Seed = 0
    curve: str | None = None
    curve_images: Annotated[int, Field(ge=0)] = 500

    @field_validator("curve")
    @classmethod
    def _are_radii(cls, radii: str | None) -> str | None:
        if radii is not None:
            try:
                read_radii(radii, "curve")
            except FieldError as exc:
                raise ValueError(str(exc)) from exc
        return radii

    @model_validator(mode="after")
    def _is_a_judgement(self) -> Judge:
        try:
            self.spec()
        except ValidationError as exc:
            raise ValueError(value.explain(exc, VerifySpec)) from exc
        return self

    def spec(self, images: int | None = None) -> VerifySpec:
        """As the verification engine is told, for another number of images where one is given."""
        fields = self.model_dump(exclude={"curve", "curve_images"})
        return VerifySpec.model_validate(fields if images is None else fields | {"images": images})


class Cron(Value):
    """At the times of a cron expression, on the clock of a time zone.

    expression: five fields: minute, hour, day, month, weekday.
    catch_up: of the slots that were missed, the latest only, or none.
    """

    kind: Literal["cron"] = "cron"
    expression: Annotated[str, Field(pattern=r"^\s*\S+(\s+\S+){4}\s*$")]
    timezone: str = "UTC"
    catch_up: Literal["latest", "none"] = "latest"

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError) as exc:  # unknown, a folder, a path
            raise ValueError(f"no such time zone here.{did_you_mean(name, available_timezones())}") from exc
        return name


class NewData(Value):
    """When a data set has changed.

    source: `path:DIR`, or `hub:org/name`, a data set on the Hub.
    min_new_rows: train images more than the last run saw; 1: any change will do.
    quiet: seconds without another change before it counts, for data that arrives in pieces.
    """

    kind: Literal["data"] = "data"
    source: str
    min_new_rows: Annotated[int, Field(ge=1)] = 1
    quiet: Seconds = 0

    @field_validator("source")
    @classmethod
    def _is_a_place(cls, source: str) -> str:
        try:
            ref = Ref.parse(source)
        except RefError:
            ref = None
        if ref is None or ref.kind == "arch" or (ref.kind == "hub" and not ref.org):
            raise ValueError("a source is path:DIR, or hub:org/name for a data set on the Hub")
        return source


class NewTeacher(Value):
    """When a teacher of the recipe has another commit.

    propose: tell somebody, and train with it only once it is approved.
    """

    kind: Literal["teacher"] = "teacher"
    propose: bool = True


class Drift(Value):
    """When what a server sees has moved away from what it was calibrated on.

    url: of the server's windows, http://HOST/v2/models/NAME/drift.
    statistic: whose effect size counts: `classes` (predicted; a PSI), `confidence` or `margin` (the largest gap of the
        shares), `channel_0`, ... (means of the images).
    above: what counts as moved.
    windows: so many in a row; one alone is a false alarm every few months.
    token: where the server's bearer token lies, if it wants one.
    """

    kind: Literal["drift"] = "drift"
    url: Annotated[str, Field(pattern=ADDRESS)]
    statistic: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "classes"
    above: Annotated[float, Field(gt=0)]
    windows: Annotated[int, Field(ge=1)] = 2
    token: Secret | None = None


class Regression(Value):
    """When the attacks have changed since the champion was judged: it is attacked again.

    suite: the attack.
    above: a new one is trained if robust accuracy fell by more than this share, and surely fell.
    """

    kind: Literal["regression"] = "regression"
    suite: Literal["autoattack", "fast", "apgd", "pgd"] = "autoattack"
    above: Share = 0.0


Trigger = Annotated[Cron | NewData | NewTeacher | Drift | Regression, Field(discriminator="kind")]


class Gate(Value):
    """What a challenger has to show, on the same images as the champion. All shares of images; 0.003 is 0.3 points.

    robust_margin, clean_margin: it is surely not worse than the champion by so much.
    robust_floor, clean_floor: it surely keeps so much, whatever the champion has.
    class_floor: so does the robust accuracy of each class.
    patch_margin: no square patch was found with which so much more of other classes' images is called some class than
        with the best one found for the champion: what a backdoored teacher leaves in a student. None: not looked for.
    patch_side: of that square in pixels; 0: an eighth of the image's side, at least 2.
    confidence: of each of these "surely", one-sided. A challenger that breaks a rule is promoted with a probability of
        at most 1 - confidence.
    audit_every: each so many promotions it must also not be surely worse on images that no gate ever saw; 0: never.
    audit_images: that are held out for it, from the end of the test split.
    early: whether the judging of a challenger ends once it is surely below the champion less robust_margin, or below
        robust_floor; it is kept out then. What is promoted was judged on all images.
    approval: whether a person has the last word.
    """

    robust_margin: Share = 0.003
    clean_margin: Share = 0.005
    robust_floor: Share = 0.0
    clean_floor: Share = 0.0
    class_floor: Share = 0.0
    patch_margin: Share | None = None
    patch_side: Annotated[int, Field(ge=0)] = 0
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    audit_every: Annotated[int, Field(ge=0)] = 0
    audit_images: Annotated[int, Field(ge=0)] = 0
    early: bool = True
    approval: bool = False

    @model_validator(mode="after")
    def _audits_images_it_has(self) -> Gate:
        if bool(self.audit_every) != bool(self.audit_images):
            raise ValueError(
                f"audit_every = {self.audit_every} and audit_images = {self.audit_images}: give both, such as 10 and "
                "1000, or none"
            )
        return self


class Export(Value):
    """The graphs that go with the weights, by precision.

    target: for whom int8 is made.
    golden: images that a server is tried on, and that go with the bundle: of the train split, or noise.
    """

    onnx: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32",)
    target: Literal["cpu", "tensorrt"] = "cpu"
    golden: Literal["train", "noise"] = "train"


class Push(Value):
    """Where a promoted model goes.

    repo: org/name on the Hub.
    tag: what servers follow; it moves to each promoted commit.
    token: where the token lies; None: the one that is saved on the machine.
    keep: so many earlier champions are kept.
    """

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] = "champion"
    private: bool = False
    token: Secret | None = None
    keep: Annotated[int, Field(ge=1)] = 5


class Budget(Value):
    """What a job may take of the machine.

    hours_per_week: of the last seven days; None: no limit.
    min_interval: seconds between the beginnings of two runs.
    max_failures: so many failed runs in a row suspend the job.
    """

    hours_per_week: Annotated[float, Field(gt=0)] | None = None
    min_interval: Seconds = 0
    max_failures: Annotated[int, Field(ge=1)] = 3


class Notify(Value):
    """Somebody to tell.

    url: of a webhook; where the address itself is a secret, where it lies.
    command: a program and its arguments, no shell; it reads the event as JSON from its standard input.
    """

    kind: Literal["webhook", "command"]
    url: str | Secret | None = None
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    on: tuple[Event, ...] = ("promoted", "awaiting", "blocked", "failed", "suspended")

    @field_validator("url", mode="before")
    @classmethod
    def _is_an_address_or_lies_somewhere(cls, given: Any) -> Any:
        # Decided by its type, so that a wrong address is not also told how to write a secret.
        if isinstance(given, str) and not re.match(ADDRESS, given):
            raise ValueError("an address begins with http:// or https://")
        return Secret.model_validate(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Notify:
        needs, other = ("url", "command") if self.kind == "webhook" else ("command", "url")
        if getattr(self, needs) is None or getattr(self, other) is not None:
            raise ValueError(f"kind = '{self.kind}' needs {needs}, and no {other}")
        return self


class Job(Value, hide_input_in_errors=True):
    """A job, with its recipe in it. It holds no secret, and errors about it show no text that was typed.

    name: of the folder that holds its state.
    recipe: how a challenger is made. Its own `verify` is not used: `judge` says how both are judged.
    trigger: what starts a run; none: somebody's hand.
    """

    version: Literal[1]
    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]{0,63}$")]
    recipe: Recipe
    judge: Judge = Field(default_factory=Judge)
    trigger: tuple[Trigger, ...] = ()
    gate: Gate = Field(default_factory=Gate)
    export: Export = Field(default_factory=Export)
    push: Push
    budget: Budget = Field(default_factory=Budget)
    notify: tuple[Notify, ...] = ()

    @model_validator(mode="after")
    def _follows_a_teacher_that_can_move(self) -> Job:
        moving = [ref for ref in self.recipe.teachers if ref.startswith("hub:")]
        if any(trigger.kind == "teacher" for trigger in self.trigger) and not moving:
            raise ValueError("a trigger of kind 'teacher' needs a recipe whose teacher is hub:NAME or hub:org/name")
        return self

    @property
    def digest(self) -> str:
        """sha256 of the whole job; changes with any of its fields."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()

    def secrets(self) -> Iterator[Secret]:
        """Every place that a run would read a secret from."""
        drifts = (trigger.token for trigger in self.trigger if isinstance(trigger, Drift))
        places = (self.push.token, *drifts, *(notify.url for notify in self.notify))
        yield from (place for place in places if isinstance(place, Secret))


def read(path: Path) -> Job:
    """The job in a TOML file. Folders and files in it are meant from the folder where it lies.

    Raises:
        DataError: no such file, or not text.
        FieldError: not a job. Numbers are shown, texts never: any of them may be a secret in the wrong place.
    """
    path = Path(path)
    fields = value.toml_fields(path)
    recipe = fields.get("recipe")
    if isinstance(recipe, dict) and "path" in recipe:
        if len(recipe) > 1 or not isinstance(recipe["path"], str):
            raise FieldError(f"{path}: [recipe] has either `path`, which names a file, or the fields of a recipe")
        fields["recipe"] = value.read(Recipe, path.parent / recipe["path"])
    return _placed(value.parse(Job, fields, str(path)), path.parent.resolve())


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    schema = Job.model_json_schema()
    elsewhere = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    either = [schema["properties"]["recipe"], elsewhere | {"additionalProperties": False}]
    schema["properties"]["recipe"] = {"anyOf": either, "description": "Fields of a recipe, or the path of its file."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "rrmsdk job"}


def _placed(job: Job, folder: Path) -> Job:
    """The same job, understood from any folder: a scheduler does not run where the file lies."""

    def at(text: str) -> str:
        return os.path.normpath(folder / Path(text).expanduser())

    def ref(text: str) -> str:
        return f"path:{at(text.removeprefix('path:'))}" if text.startswith("path:") else text

    def secret(place: Any) -> Any:
        return Secret(file=at(place.file)) if isinstance(place, Secret) and place.file else place

    recipe = job.recipe
    data = {"name": ref(recipe.data.name), "extra": recipe.data.extra and ref(recipe.data.extra)}
    teachers = tuple(map(ref, recipe.teachers))
    placed: dict[str, Any] = {
        "data": recipe.data.model_copy(update=data), "teacher": teachers[0] if len(teachers) == 1 else teachers or None
    }  # fmt: skip
    if (start := recipe.student.start) is not None:
        start = start.model_copy(update={"file": at(start.file)})
        placed["student"] = recipe.student.model_copy(update={"start": start})
    if recipe.train.bank is not None and recipe.train.bank.folder is not None:
        bank = recipe.train.bank.model_copy(update={"folder": at(recipe.train.bank.folder)})
        placed["train"] = recipe.train.model_copy(update={"bank": bank})
    triggers = []
    for one in job.trigger:
        if isinstance(one, NewData):
            one = one.model_copy(update={"source": ref(one.source)})
        if isinstance(one, Drift):
            one = one.model_copy(update={"token": secret(one.token)})
        triggers.append(one)
    told = [one.model_copy(update={"url": secret(one.url)}) for one in job.notify]
    return job.model_copy(
        update={
            "recipe": recipe.model_copy(update=placed), "trigger": tuple(triggers), "notify": tuple(told),
            "push": job.push.model_copy(update={"token": secret(job.push.token)}),
        }
    )  # fmt: skip
