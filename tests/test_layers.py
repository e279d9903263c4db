"""Arrows point inward: values <- torch-free services <- compute <- verbs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rrmsdk"
RINGS = [
    {"errors", "files", "schema", "stamps"},
    {"hub", "runtime"},
    {"draws", "models", "attacks", "methods", "data", "training", "verification", "exports", "visual"},
    {"api", "banking", "certifying", "cli", "converting", "corrupting", "curving", "diagnosing", "exporting"}
    | {"judging", "launching", "opening", "predicting", "quickstart", "reporting", "retraining", "robustify", "serving"}
    | {"signing", "sweeping", "teachers", "verifying", "zooing", "__main__", "rrmsdk"},
]
# A bundle's verbs are those of the public package, said of the bundle.
OUTWARD = {("schema/bundle.py", "rrmsdk")}


def _ring(module: str) -> int:
    return next((number for number, ring in enumerate(RINGS) if module in ring), len(RINGS))


def _imports(path: Path) -> set[str]:
    """The rooms of rrmsdk that a file imports, inside functions too; `rrmsdk` for the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "rrmsdk":
                found.add(name.split(".")[1] if "." in name else "rrmsdk")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_imports_from_a_ring_outside_its_own(path):
    place = path.relative_to(PACKAGE)
    own = _ring(place.parts[0].removesuffix(".py"))
    outside = {room for room in _imports(path) if _ring(room) > own and (str(place), room) not in OUTWARD}
    assert not outside, f"{place} imports {sorted(outside)}"


def test_every_room_has_a_ring():
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} == set().union(*RINGS) - {"rrmsdk"}


def test_values_and_services_import_where_torch_cannot_be():
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import rrmsdk, rrmsdk.hub, rrmsdk.runtime.session, rrmsdk.runtime.endpoint, rrmsdk.cli\n"
        "import rrmsdk.runtime.server, rrmsdk.serving\n"
        "import rrmsdk.schema.recipe, rrmsdk.schema.report\n"
        "import rrmsdk.retraining.decide, rrmsdk.retraining.due, rrmsdk.retraining.explain, rrmsdk.retraining.observe\n"
        "import rrmsdk.retraining.gate, rrmsdk.retraining.once, rrmsdk.retraining.push, rrmsdk.retraining.schedule\n"
        "print(rrmsdk.zoo())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_command_line_imports_neither_torch_nor_the_client_of_the_hub():
    heavy = {"torch", "huggingface_hub", "onnxruntime", "matplotlib", "starlette", "uvicorn"}
    code = f"import sys, rrmsdk.cli; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_verb_whose_extra_is_missing_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; from rrmsdk.cli import main; main()"
    asked = ["transfer", "-t", "hub:digits-cnn-linf", "--student", "resnet14", "-d", "digits"]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'rrmsdk[train]'" in done.stderr


def test_no_python_of_the_library_lies_under_zoo_or_serve():
    root = PACKAGE.parent
    assert not [*root.glob("zoo/**/*.py"), *root.glob("serve/**/*.py")]


def test_the_public_names_are_sorted_and_all_there():
    import rrmsdk

    assert rrmsdk.__all__ == sorted(rrmsdk.__all__)
    assert all(hasattr(rrmsdk, name) for name in rrmsdk.__all__)
