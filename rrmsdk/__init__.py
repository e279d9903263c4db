"""Transfer adversarial robustness from a teacher to any student, verify it by attack, and ship it."""

from rrmsdk.api import load, pull, push, train, transfer
from rrmsdk.banking import bank
from rrmsdk.certifying import certify
from rrmsdk.corrupting import corrupt
from rrmsdk.curving import curve
from rrmsdk.diagnosing import diagnose
from rrmsdk.errors import (
    BlockedError,
    BusyError,
    DataError,
    DiskFullError,
    DivergedError,
    EndpointError,
    ExportError,
    FieldError,
    HubError,
    IntegrityError,
    MismatchError,
    MissingExtraError,
    MovedError,
    OutOfMemory,
    ParityError,
    RankError,
    RefError,
    RrmError,
    SaveError,
    SuspendedError,
)
from rrmsdk.exporting import export
from rrmsdk.judging import attack
from rrmsdk.predicting import predict
from rrmsdk.reporting import report
from rrmsdk.retraining.outcome import Outcome
from rrmsdk.retraining.run import retrain
from rrmsdk.robustify import RobustDataset, robustify
from rrmsdk.schema.bank import BankInfo
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.certified import Certified
from rrmsdk.schema.corruption import Corruptions
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.diagnosis import Diagnosis
from rrmsdk.schema.job import Job
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.prediction import Prediction
from rrmsdk.schema.recipe import BankSpec, Recipe, Schedule, StudentSpec, TrainSpec, VerifySpec
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.report import Report
from rrmsdk.schema.serving import Serving
from rrmsdk.schema.signed import Signed
from rrmsdk.schema.sweep import Sweep
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.serving import serve
from rrmsdk.signing import sign, verify_signature
from rrmsdk.sweeping import sweep
from rrmsdk.verifying import verify
from rrmsdk.zooing import ZooCheck, zoo, zoo_build, zoo_check, zoo_show

__version__ = "0.1.0"

__all__ = [
    "BankInfo", "BankSpec", "BlockedError", "Bundle", "BusyError", "Card", "Certified", "Corruptions", "Curve",
    "DataError", "DataSpec", "Diagnosis", "DiskFullError", "DivergedError", "EndpointError", "ExportError",
    "FieldError", "HubError", "IntegrityError", "Job", "MismatchError", "MissingExtraError", "ModelConfig",
    "MovedError", "OutOfMemory", "Outcome", "ParityError", "Prediction", "RankError", "Recipe",
    "Ref", "RefError", "Report", "RobustDataset", "RrmError", "SaveError", "Schedule", "Serving", "Signed",
    "StudentSpec", "SuspendedError", "Sweep", "ThreatModel", "TrainSpec", "VerifySpec", "ZooCheck", "attack",
    "bank", "certify", "corrupt", "curve", "diagnose", "export", "load", "predict", "pull", "push", "report",
    "retrain", "robustify", "serve", "sign", "sweep", "train", "transfer", "verify", "verify_signature", "zoo",
    "zoo_build", "zoo_check", "zoo_show",
]  # fmt: skip
