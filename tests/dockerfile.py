"""A Dockerfile, read and replayed in a folder that stands for its image's root, since there is no engine here.

No layers and no isolation: every path of the image lies below the folder, the base image is a fresh virtual
environment, and the instructions run as they stand there. A stage is moved aside when the next begins, so that what is
copied out of it comes to lie where it was made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """An instruction: its word, its flags, and the rest of the line."""

    word: str
    flags: dict[str, str]
    rest: str

    @property
    def command(self) -> list[str]:
        """The exec form. Raises ValueError: it is in shell form."""
        return json.loads(self.rest.removeprefix("CMD ") if self.word == "HEALTHCHECK" else self.rest)


def read(path: Path) -> list[Step]:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [_step(line) for line in text.splitlines() if line.strip()]


def _step(line: str) -> Step:
    word, rest = line.split(maxsplit=1)
    flags = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    return Step(word.upper(), flags, rest.strip())


def ignored(name: str, folder: Path) -> bool:
    """Whether .dockerignore keeps it from a build: the last line that fits it, or a folder it lies in, decides."""
    ways, out = [name, *map(str, list(Path(name).parents)[:-1])], False
    for rule in (folder / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#"):
            pattern = re.escape(rule.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, way) for way in ways):
                out = not rule.startswith("!")
    return out


@dataclass
class Image:
    """What the last stage left. user: whom it runs as; None: whoever runs this, who cannot become somebody else."""

    root: Path
    environment: dict[str, str]
    user: int | None
    folder: str = "/"

    def place(self, path: str) -> Path:
        """Of an absolute path of the image, or of one relative to its folder."""
        return self.root / os.path.join(self.folder, path).lstrip("/")

    def command(self, words: Sequence[str]) -> list[str]:
        """With the image's paths and programs as they are called here."""
        program, *arguments = [str(self.place(word)) if word.startswith("/") else word for word in words]
        found = shutil.which(program, path=self.environment["PATH"])
        assert found, f"the image has no {program}"
        return [found, *arguments]

    def start(self, words: Sequence[str], **settings: object) -> subprocess.Popen[str]:
        """As a container is started: with the environment of the image alone, as its user."""
        return subprocess.Popen(
            self.command(words), cwd=self.place("."), env=self.environment | {"HOME": str(self.root)}, text=True,
            user=self.user, group=self.user, extra_groups=None if self.user is None else [], **settings,
        )  # fmt: skip

    def files(self) -> Iterator[Path]:
        return (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())


def build(steps: Sequence[Step], context: Path, place: Path) -> Image:
    """Replay all instructions below `place`, which everybody has to be able to read."""
    last = [step for step in steps if step.word == "USER"][-1]
    python, user = interpreter(int(last.rest.partition(":")[0]))
    subprocess.run([python, "-m", "venv", place / "base"], check=True)
    arguments: dict[str, str] = {}
    image = Image(place / "root", {}, user)
    name = ""
    for step in steps:
        if step.word == "ARG":
            key, _, text = step.rest.partition("=")
            arguments[key] = text
        elif step.word == "FROM":
            if name:
                image.root.rename(place / name)
            name = step.rest.partition(" AS ")[2] or "last"
            image = Image(place / "root", {"PATH": str(place / "base" / "bin")}, user)
            image.root.mkdir()
        else:
            _replay(step, image, context, place)
    return image


def _replay(step: Step, image: Image, context: Path, place: Path) -> None:
    match step.word:
        case "WORKDIR":
            image.folder = step.rest
            image.place(".").mkdir(parents=True, exist_ok=True)
        case "COPY":
            *sources, target = step.rest.split()
            for source in sources:
                if "from" in step.flags:
                    shutil.copytree(place / step.flags["from"] / source.lstrip("/"), image.place(target), symlinks=True)
                else:
                    _copy(source, context, image.place(target))
        case "RUN":
            pip = {name: text for name, text in os.environ.items() if name.startswith(("PIP_", "SSL_", "HOME"))}
            command = image.command(step.command)
            done = subprocess.run(
                command, cwd=image.place("."), env=image.environment | pip, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
        case "ENV":
            for pair in step.rest.split():
                name, _, text = pair.partition("=")
                ways = [str(image.place(way)) if way.startswith("/") else way for way in text.split(":")]
                before = image.environment.get(name, "")
                image.environment[name] = ":".join(ways).replace(f"${name}", before)
        case "USER" | "EXPOSE" | "STOPSIGNAL" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
            pass  # of a container, not of its files: the tests start it
        case _:
            raise AssertionError(f"nobody has taught the replay what {step.word} does")


def _copy(source: str, context: Path, target: Path) -> None:
    """A file into a folder, or what is in a folder, as far as .dockerignore lets it."""
    found = context / source
    assert found.exists(), f"COPY {source}: it is not there"
    for path in [found] if found.is_file() else found.rglob("*"):
        if path.is_file() and not ignored(str(path.relative_to(context)), context):
            there = target / (path.name if found.is_file() else path.relative_to(found))
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)


def interpreter(user: int) -> tuple[str, int | None]:
    """A python that `user` may run, and the user; None in its place where this process cannot become somebody else."""
    own = getattr(sys, "_base_executable", sys.executable)
    if os.getuid() == 0:
        for python in (own, "/usr/bin/python3"):
            code = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
            done = subprocess.run(
                ["/usr/bin/env", python, "-c", code], user=user, group=user, capture_output=True, cwd="/"
            )
            if done.returncode == 0:
                return python, user
    return own, None
