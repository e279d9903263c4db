"""The README of a repository on the Hub: its YAML head for machines, and a page for people."""

from __future__ import annotations

import os

from huggingface_hub import EvalResult, ModelCardData

from rrmsdk.hub import index
from rrmsdk.hub.papers import cited
from rrmsdk.schema.bundle import ONNX, REPORT, Bundle
from rrmsdk.schema.card import Card, Pinned
from rrmsdk.schema.entry import External
from rrmsdk.schema.report import UPPER_BOUND, Report
from rrmsdk.schema.threat import spelt

# Names of ours that are data sets on the Hub.
HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
# Licences the Hub knows by these ids; others are `other` with a name.
HUB_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense",
    "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
)  # fmt: skip


def render(bundle: Bundle, repo: str) -> str:
    """README.md of `bundle` as it lies in the repository `repo`.

    The same bundle always gives the same text, in the organisation that `RRMSDK_HUB_ORG` names: `hub:NAME` is there.
    """
    card = bundle.card
    report = bundle.report if (bundle.path / REPORT).is_file() else None
    about = (_what(card), _use(bundle, repo), _measured(report), _limits(card, report))
    body = "\n\n".join([f"# {repo.split('/')[-1]}", *about, _made(card), _thanks(card, report)])
    return f"---\n{_head(card, report, repo)}\n---\n\n{body}\n"


def _head(card: Card, report: Report | None, repo: str) -> str:
    known = card.licence in HUB_LICENCES
    dataset = HUB_DATASETS.get(card.data.name)
    data = ModelCardData(
        library_name="rrmsdk",
        license=card.licence if known else "other",
        license_name=None if known else card.licence,
        pipeline_tag="image-classification",
        datasets=[dataset] if dataset else None,
        metrics=["accuracy"],
        tags=["rrmsdk", "adversarial-robustness", card.threat.norm, f"eps-{spelt(card.threat.eps)}".replace("/", "-")]
        + ["knowledge-distillation"] * bool(card.teachers),
        base_model=_repositories(card) or None,
        model_name=repo.split("/")[-1],
        eval_results=_results(card, report) if report else None,
    )
    return data.to_yaml().strip()


def _results(card: Card, report: Report) -> list[EvalResult]:
    threat = {"norm": report.threat.norm, "eps": spelt(report.threat.eps)}
    attack = {"attack": report.attack, **threat, "images": report.images}
    figures = (
        ("Clean accuracy", report.clean, {"images": report.images}),
        (f"Robust accuracy ({report.threat}, {report.attack}; upper bound found by attacking)", report.robust, attack),
    )
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=HUB_DATASETS.get(card.data.name, card.data.name),
            dataset_name=card.data.name,
            dataset_split=report.split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(figure, 6),
            metric_args=args,
        )
        for name, figure, args in figures
    ]


def _what(card: Card) -> str:
    size = f"{card.model.input_size}x{card.model.input_size}"
    lines = [
        f"`{card.model.arch}` for {card.model.classes} classes, {card.model.channels} x {size} pixels in [0, 1] "
        f"(it normalises inside), trained on {_images(card)} by `{card.method.get('name')}`. "
        f"The threat it is judged by: {card.threat}.",
    ]
    if card.notes:
        lines.append(card.notes)
    return "\n\n".join(lines)


def _images(card: Card) -> str:
    extra = card.data.extra
    if extra is None:
        return card.data.name
    return f"{card.data.name} and {extra.images} images of {extra.name} ({extra.ratio:.0%} of each batch)"


def _use(bundle: Bundle, repo: str) -> str:
    card, model = bundle.card, bundle.card.model
    example = ', student="resnet50", data="cifar10"' if card.data.name == "cifar10" else ", student=..., data=..."
    parts = [
        f"## Use\n\nPixels are in [0, 1], {model.channels} channels first; it normalises inside. "
        "Weights are safetensors; nothing here is a pickle, and every file is compared with its hash in `card.json`.",
        "With rrmsdk, and as a teacher of your own student:\n\n"
        "```python\nimport rrmsdk\n\n"
        f'network = rrmsdk.load("hub:{repo}")  # an nn.Module in eval mode: pixels -> logits\n'
        f'student = rrmsdk.transfer(teacher="hub:{repo}"{example})\n```',
    ]
    if ONNX in card.files:
        shape = f"1, {model.channels}, {model.input_size}, {model.input_size}"
        parts += [_with_onnxruntime(repo, shape), _with_javascript(repo, shape)]
    return "\n\n".join(parts)


def _with_onnxruntime(repo: str, shape: str) -> str:
    return (
        "With onnxruntime alone:\n\n```python\nimport numpy as np\nimport onnxruntime\n"
        "from huggingface_hub import hf_hub_download\n\n"
        f'session = onnxruntime.InferenceSession(hf_hub_download("{repo}", "{ONNX}"))\n'
        f"pixels = np.zeros(({shape}), np.float32)  # your images\n"
        'logits = session.run(["logits"], {"pixels": pixels})[0]\n```'
    )


def _with_javascript(repo: str, shape: str) -> str:
    numbers = shape.replace(", ", " * ").removeprefix("1 * ")
    return (
        'With transformers.js:\n\n```js\nimport { AutoModel, Tensor } from "@huggingface/transformers";\n\n'
        f'const model = await AutoModel.from_pretrained("{repo}", {{ dtype: "fp32" }});\n'
        f'const pixels = new Tensor("float32", new Float32Array({numbers}), [{shape}]);  // your image\n'
        "const { logits } = await model({ pixels });\n```"
    )


def _limits(card: Card, report: Report | None) -> str:
    lines = [
        f"- It was made for one threat: {card.threat}. Larger radii, other norms, rotations, blur, patches or anything "
        "else an attacker may do to a picture are another matter.",
        "- Robust accuracy found by attacking is an upper bound: a stronger attack may find more. It is no proof.",
        f"- It knows {card.model.classes} classes and answers one of them whatever it is shown.",
    ]
    if report is not None and report.images < card.data.test:
        lines.append(f"- The figures are of {report.images} of the {card.data.test} test images.")
    if card.data.encoding == "jpeg":
        lines.append("- It was trained and judged on JPEG copies of the images, which costs accuracy.")
    return "## Limits\n\n" + "\n".join(lines)


def _measured(report: Report | None) -> str:
    if report is None:
        return "## Robustness\n\nIt has not been attacked yet: nothing is known about its robust accuracy."
    low, high = report.interval
    rows = [
        f"| none (clean) | {report.images} | | {report.clean:.4f} |",
        *(f"| {_cell(a.name)} | {a.attacked} | {a.broken} | {a.robust:.4f} |" for a in report.attacks),
    ]
    failed = [f"- {check.name}: {check.says}" for check in report.checks if not check.ok]
    return "\n".join(
        [
            "## Robustness",
            "",
            UPPER_BOUND,
            "",
            f"{report.attack}, {report.threat}, {report.images} {report.split} images of {report.data.name} "
            f"(stored as {report.data.encoding}): clean {report.clean:.4f}, "
            f"robust {report.robust:.4f} ({report.interval_is} {low:.4f} to {high:.4f}).",
            "",
            "| attack | images attacked | broken | accuracy left |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            *(["", "Checks that did not pass:", "", *failed] if failed else []),
            "",
            f"Seed {report.seed}, {report.engine}, {_cell(report.hardware)}, {report.date}. "
            f"Weights sha256 `{report.weights_sha256}`.",
        ]
    )


def _made(card: Card) -> str:
    method = ", ".join(f"{name} = {setting}" for name, setting in card.method.items())
    teachers = [
        f"- Teacher: `{teacher.ref}`"
        + (f" at commit `{teacher.revision}`" if teacher.revision else "")
        + f", weights sha256 `{teacher.weights_sha256}`"
        for teacher in card.teachers
    ]
    origin = card.origin
    lines = [
        f"- Method: {method}",
        *(
            [
                f"- Weights of others: `{origin.file}` of `{origin.repo}` at commit `{origin.commit}`, "
                f"sha256 `{origin.sha256}`"
            ]
            if origin
            else []
        ),
        *teachers,
        f"- Weights kept: {card.weights}",
        f"- Licence: {card.licence}",
        f"- Made with rrmsdk {card.rrmsdk_version}, {card.date}",
    ]
    return "## How it was made\n\n" + "\n".join(lines)


def _thanks(card: Card, report: Report | None) -> str:
    papers = cited(str(card.method.get("name")), report.attack if report else None)
    own = card.method.get("paper")
    lines = [f"- {paper}" for paper in ([str(own)] if own else []) + papers]
    lines += [f"- Teacher: [{name}](https://huggingface.co/{name})" for name in _repositories(card)]
    return "## Cite\n\n" + ("\n".join(lines) or "Nothing beyond this page.")


def _repositories(card: Card) -> list[str]:
    """The repositories of the teachers that lie in one."""
    found = (_repository(teacher) for teacher in card.teachers if teacher.ref.startswith("hub:"))
    return list(dict.fromkeys(repo for repo in found if repo is not None))


def _repository(teacher: Pinned) -> str | None:
    """Where `hub:NAME` or `hub:org/name` was pulled from; None: it ships in the package, or nobody can tell."""
    name = teacher.ref.removeprefix("hub:").partition("@")[0]
    if "/" in name:
        return name
    if teacher.revision is None:
        return None
    entry = index.find(name)
    if isinstance(entry, External):
        return entry.source.repo
    if entry is not None and entry.release is not None and entry.release.commit == teacher.revision:
        return entry.release.repo
    org = os.environ.get("RRMSDK_HUB_ORG")
    return f"{org}/{name}" if org else None


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
