"""A run, fully described: the arguments of `transfer` or `train`, as one TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.ref import without_place
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import SCHEMA_VERSION, Seed, Value

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Schedule(Value):
    """Learning rate over a run; the trainer multiplies `lr` by a factor that depends on the step alone.

    kind: `cosine` to `final` x lr per step (RRM); `triangular` 0 -> 1 -> 0 with its top at `peak` (Fast AT);
        `onecycle`, 1/25 -> 1 -> `final` in two cosine halves (AKD); `multistep`, x `gamma` at the `milestones` in
        epochs (Madry, Rice); `exponential`, x `gamma` each epoch (AKD's teachers); `constant`.
    peak: where the top lies, as a share of the run. AKD does not say where; torch's OneCycleLR has it at 0.3, and
        `final` at 4e-6.
    """

    kind: Literal["cosine", "triangular", "onecycle", "multistep", "exponential", "constant"] = "cosine"
    final: Share = 1e-5
    peak: Share = 0.4
    milestones: tuple[float, ...] = ()
    gamma: Positive = 0.1


class BankSpec(Value):
    """A feature bank: what the teachers say of the training images is written once and read by every student.

    folder: of this one bank; None: one in the cache (`$RRMSDK_CACHE`, or ~/.cache/rrmsdk), named by what it holds.
    epochs: of augmentation that it holds; a longer run sees the same images again. None: those of the run, rounded up.
    precision: of what is stored. fp32 changes no bit of a run; fp16 takes half the place.
    """

    folder: str | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["fp16", "fp32"] = "fp16"


class TrainSpec(Value):
    """How the weights are moved.

    epochs: passes over the train split; may be a fraction. 0: the weights of `student.start` as they are.
    precision: autocast of the forward pass; weights and optimiser state stay fp32.
    channels_last: how images and weights lie in memory; narrow ResNets lie the other way on a CPU (training/layout.py).
    ema: decay of an exponential moving average of the weights; None: none. An average, once it has begun, is validated,
        kept and served in the student's place; each time, 100 batches give it batch-norm statistics of its own.
    swa_from: share of the run after which the weights of every step are averaged with equal weight; None: none.
    clip: largest L2 norm of the student's gradient; None: no clipping.
    augment: `crop-flip` (pad 4, at 8 px pad 1), `crop` (no flip: digits) or `none`.
    head: `teacher` starts the student's last layer from the teacher's where shapes agree.
    keep: which weights the bundle serves: `last` (papers), or `best` on the validation split.
    validate_every: epochs between two looks at the validation split; 0: only at the end.
    checkpoint_every: steps between two checkpoints; 0: one each epoch.
    keep_epochs: after each of these the student is kept as a bundle of its own, `path:RUN@epoch=N`: early-stopped
        teachers.
    accumulate: parts that a batch is cut in, one forward and backward pass each, to save memory; the gradient is that
        of the whole batch, but for batch-norm, which sees a part at a time.
    sync_batch_norm: whether batch-norm sees the images of all ranks (CUDA) or each rank those of its own.
    bank: for rrm, mixacm and others whose teacher sees natural images only; None: the teacher is asked at each step.
    """

    epochs: Annotated[float, Field(ge=0)] = 48.0
    batch: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Schedule = Field(default_factory=Schedule)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    swa_from: Share | None = None
    clip: Positive | None = None
    augment: Literal["crop-flip", "crop", "none"] = "crop-flip"
    head: Literal["random", "teacher"] = "random"
    keep: Literal["last", "best"] = "last"
    validate_every: Annotated[float, Field(ge=0)] = 1.0
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    keep_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    accumulate: Annotated[int, Field(ge=1)] = 1
    sync_batch_norm: bool = False
    bank: BankSpec | None = None

    @model_validator(mode="after")
    def _one_average(self) -> TrainSpec:
        if self.ema is not None and self.swa_from is not None:
            raise ValueError("ema and swa_from are two averages of the same weights; give one")
        return self

    @model_validator(mode="after")
    def _keeps_epochs_of_its_own(self) -> TrainSpec:
        if late := [epoch for epoch in self.keep_epochs if epoch > self.epochs]:
            raise ValueError(f"keep_epochs has {late}, but the run has {self.epochs:g} epochs; keep earlier ones")
        return self


class Checkpoint(Value):
    """Somebody's weights, as the bytes that were looked at.

    file: a path. Safetensors, or a pickle of plain tensors (torch.save).
    sha256: of the bytes. A file with another hash is not opened.
    prefix: what comes before the network's own names in the file, such as `module.model.`.
    """

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    prefix: str = ""


class StudentSpec(Value):
    """The network to train; classes, input size and channels come from the data.

    width: RRM's projection: `teacher` gives the student an embedding as wide as the teacher's where they differ,
        a number gives that width, None none.
    start: weights to begin with; None: random ones.
    """

    arch: str
    width: Annotated[int, Field(ge=1)] | Literal["teacher"] | None = None
    width_mult: Positive = 1.0
    start: Checkpoint | None = None


class VerifySpec(Value):
    """How the result is judged.

    attack: `autoattack`; `fast`, a cheaper upper bound that is not AutoAttack; `apgd` (RRM's AutoPGD, 50 steps, 10
        restarts); `pgd` (steps, restarts below); `fgsm`, one step to the edge of the ball; `square`, noise and Square
        (queries below), which need no gradients; `replay`, images that were found on other weights and nothing else.
    version: of AutoAttack: `standard`, `plus` (more restarts, untargeted attacks too) or `rand` (a randomised network).
    engine: `native`, or `reference` for the authors' own code (`pyautoattack`), which knows `standard` and `apgd`.
    images: how many of the test split, from its start; 0: all.
    at_least: stop as soon as robust accuracy of these images is above or below this, judging them in a random order;
        None: judge all.
    stop: at either verdict, or only at `below`: a model that keeps the floor is then judged on all images.
    confidence: of that verdict.
    adaptive: whether `autoattack` (native; not `rand`) goes on with attacks made for what the checks found: masked
        gradients, saturated logits, randomness. A network that passes them is not attacked further.
    search: the precision in which attacks look for images. An image counts only where the network itself, in fp32, is
        wrong about it, so `bf16` can find less and never too much; the report's name of the attack says so. Not of
        `pgd`, `fgsm`, `replay`, `rand` and `reference`.
    """

    attack: Literal["autoattack", "fast", "apgd", "pgd", "fgsm", "square", "replay"] = "autoattack"
    version: Literal["standard", "plus", "rand"] = "standard"
    engine: Literal["native", "reference"] = "native"
    images: Annotated[int, Field(ge=0)] = 1000
    at_least: Share | None = None
    stop: Literal["either", "below"] = "either"
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.99
    batch: Annotated[int, Field(ge=1)] = 256
    steps: Annotated[int, Field(ge=1)] | None = None
    restarts: Annotated[int, Field(ge=1)] | None = None
    queries: Annotated[int, Field(ge=1)] | None = None
    adaptive: bool = True
    search: Literal["fp32", "bf16"] = "fp32"
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_no_settings_of_another_attack(self) -> VerifySpec:
        if self.queries is not None and self.attack != "square":
            raise ValueError(f"queries = {self.queries} goes with attack = 'square', not '{self.attack}'")
        if self.attack not in ("apgd", "pgd") and (self.steps is not None or self.restarts is not None):
            name = "AutoAttack" if self.attack == "autoattack" else self.attack
            raise ValueError(
                f"steps = {self.steps} and restarts = {self.restarts} go with attack = 'apgd' or 'pgd'; "
                f"{name} has its own. Leave them out"
            )
        if self.version != "standard" and self.attack != "autoattack":
            raise ValueError(f"version = '{self.version}' goes with attack = 'autoattack', not '{self.attack}'")
        return self

    @model_validator(mode="after")
    def _asks_what_the_engine_can(self) -> VerifySpec:
        if self.engine == "reference" and (self.attack not in ("autoattack", "apgd") or self.version != "standard"):
            what = f"'{self.attack}'" if self.version == "standard" else f"version '{self.version}'"
            raise ValueError(
                f"engine = 'reference' runs autoattack (standard) and apgd, not {what}. Use engine = 'native'"
            )
        ours = self.attack in ("autoattack", "fast", "apgd", "square") and self.engine == "native"
        if self.search != "fp32" and (not ours or self.version == "rand"):
            raise ValueError(
                f"search = '{self.search}' goes with our own autoattack (standard, plus), fast, apgd and square. "
                "Leave it out"
            )
        return self


class Recipe(Value):
    """Everything `rrmsdk train` and `rrmsdk transfer` need.

    notes: what a user of the model should know; goes onto the card.
    teacher: a reference, or several for a method that takes an ensemble; None: the method needs none.
    method: `{name = "rrm", ...}`; its fields belong to `rrmsdk.methods`, which reads them at the door of the trainer
        (values are torch-free, methods are not).
    store: precision of the weights in the bundle; what is stored is what is judged.
    """

    schema_version: int = SCHEMA_VERSION
    name: str = ""
    notes: str = ""
    licence: str = "apache-2.0"
    teacher: str | tuple[str, ...] | None = None
    student: StudentSpec
    data: DataSpec
    threat: ThreatModel
    method: dict[str, Any]
    train: TrainSpec = Field(default_factory=TrainSpec)
    verify: VerifySpec = Field(default_factory=VerifySpec)
    store: Literal["fp32", "fp16"] = "fp32"
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_weights_or_trains_some(self) -> Recipe:
        if self.train.epochs == 0 and self.student.start is None:
            raise ValueError("train.epochs = 0 would publish random weights; give student.start, or epochs above 0")
        return self

    @model_validator(mode="after")
    def _finds_its_own_images(self) -> Recipe:
        if self.verify.attack == "replay":
            raise ValueError("verify.attack = 'replay' goes with rrmsdk.attack(..., replay=FILE), not with a recipe")
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        """The references, however many."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    def published(self) -> Recipe:
        """What goes into the bundle: the recipe without the places of folders on this machine."""
        places = {"name": without_place(self.data.name), "extra": self.data.extra and without_place(self.data.extra)}
        data = self.data.model_copy(update=places)
        teachers, student = tuple(without_place(ref) for ref in self.teachers), self.student
        teacher = teachers[0] if len(teachers) == 1 else teachers or None
        if student.start is not None:
            start = student.start.model_copy(update={"file": Path(student.start.file).name})
            student = student.model_copy(update={"start": start})
        train = self.train
        if train.bank is not None:
            train = train.model_copy(update={"bank": train.bank.model_copy(update={"folder": None})})
        return self.model_copy(update={"data": data, "teacher": teacher, "student": student, "train": train})
