"""A bundle that was not signed by a trusted key, or is not as it was then, is refused, and the reason is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rrmsdk
from rrmsdk.errors import DataError, IntegrityError
from rrmsdk.runtime import signature, statement
from rrmsdk.runtime.signature import verify
from rrmsdk.schema.bundle import CARD, CONFIG, README, SIGNATURE, WEIGHTS, Bundle
from tests.bundles import make_bundle
from tests.signatures import sealed, write_key
from tests.signatures import statement as stated

Change = Callable[[Path], object]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "release.pem")


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("release.pem.pub")


@pytest.fixture
def signed(tmp_path: Path, key: Path) -> Bundle:
    return rrmsdk.sign(make_bundle(tmp_path / "made"), key=key)


def lay(bundle: Bundle, file: dict[str, Any] | bytes) -> None:
    (bundle.path / SIGNATURE).write_bytes(file if isinstance(file, bytes) else json.dumps(file).encode())


def test_a_signed_bundle_says_by_which_key_and_what(signed: Bundle, public: Path) -> None:
    found = verify(signed.path, [public])
    assert (found.name, found.date) == (signed.card.name, signed.card.date)
    assert set(found.files) == {CARD, *signed.card.files}
    assert found.key == json.loads((signed.path / SIGNATURE).read_bytes())["verificationMaterial"]["publicKey"]["hint"]


def test_any_of_the_trusted_keys_may_have_signed(signed: Bundle, public: Path, tmp_path: Path) -> None:
    write_key(tmp_path / "other.pem")
    assert verify(signed.path, [tmp_path / "other.pem.pub", public]) == verify(signed.path, [public])


def test_the_files_of_a_snapshot_may_be_links(signed: Bundle, public: Path, tmp_path: Path) -> None:
    for name in (*signed.card.files, CARD, SIGNATURE):
        (tmp_path / "snapshot" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "snapshot" / name).symlink_to(signed.path / name)
    assert verify(tmp_path / "snapshot", [public]).name == signed.card.name


@pytest.mark.parametrize("name", [README, "run.toml", ".bundle.lock", ".lock", "metrics.csv", "epochs/5/card.json",
                                  "tensorboard/events", ".cache/huggingface/x", ".gitattributes"])  # fmt: skip
def test_what_need_not_be_signed_may_be_there(signed: Bundle, public: Path, name: str) -> None:
    (signed.path / name).parent.mkdir(parents=True, exist_ok=True)
    (signed.path / name).write_text("anything")
    assert verify(signed.path, [public])


def test_an_unsigned_bundle_is_refused(signed: Bundle, public: Path) -> None:
    (signed.path / SIGNATURE).unlink()
    with pytest.raises(IntegrityError, match=r"made is not signed: it has no model\.sig\. .*rrmsdk sign path:DIR"):
        verify(signed.path, [public])


def test_a_signature_by_another_key_is_refused_with_both(signed: Bundle, key: Path, tmp_path: Path) -> None:
    write_key(tmp_path / "other.pem")
    ours, theirs = (signature._public(path)[0] for path in (tmp_path / "other.pem.pub", Path(f"{key}.pub")))
    with pytest.raises(IntegrityError, match=rf"made is signed by another key, {theirs}; trusted: {ours}"):
        verify(signed.path, [tmp_path / "other.pem.pub"])


def test_a_signature_that_only_names_the_trusted_key_is_a_forgery(signed: Bundle, public: Path, tmp_path: Path) -> None:
    forged = sealed(write_key(tmp_path / "theirs.pem"), stated(signed))
    honest = json.loads((signed.path / SIGNATURE).read_bytes())
    lay(signed, forged | {"verificationMaterial": honest["verificationMaterial"]})
    with pytest.raises(IntegrityError, match=r"model\.sig was changed or forged: the key \w+, which it names, did not"):
        verify(signed.path, [public])


CHANGES: list[tuple[str, Change, str]] = [
    (
        "a changed byte",
        lambda path: (path / WEIGHTS).write_bytes(b"other"),
        r"model\.safetensors was changed: it has sha256 \w{64}, signed was \w{64}",
    ),
    (
        "a changed card",
        lambda path: (path / CARD).write_text((path / CARD).read_text() + "\n"),
        r"card\.json was changed",
    ),
    ("a missing file", lambda path: (path / CONFIG).unlink(), r"made: config\.json is missing, but signed"),
    ("an extra file", lambda path: (path / "hook.py").write_text(""), r"made: hook\.py is extra, no part of what is"),
    ("an extra hidden file", lambda path: (path / ".env").write_text(""), r"\.env is extra"),
    (
        "extra files deeper down",
        lambda path: [(path / "onnx").mkdir(), (path / "onnx" / "a").touch(), (path / "onnx" / "b").touch()],
        r"made: onnx/a, onnx/b are extra",
    ),
    ("a link to a folder", lambda path: (path / "link").symlink_to(path.parent), r"made: link is extra"),
    (
        "a pipe in a file's place",
        lambda path: [(path / CONFIG).unlink(), os.mkfifo(path / CONFIG)],
        r"config\.json is missing",
    ),
    ("a link to nowhere", lambda path: [(path / CONFIG).unlink(), (path / CONFIG).symlink_to("no")], "is missing"),
]


@pytest.mark.parametrize(("change", "said"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_bundle_that_was_changed_is_refused_with_the_reason(
    signed: Bundle, public: Path, change: Change, said: str
) -> None:
    change(signed.path)
    with pytest.raises(IntegrityError, match=said):
        verify(signed.path, [public])


@pytest.mark.parametrize("name", ["../card.json", "/etc/passwd", "onnx/../../x", "a\\b", "C:x", "./card.json", "a//b"])
def test_a_statement_about_files_outside_is_refused(signed: Bundle, key: Path, public: Path, name: str) -> None:
    lay(signed, sealed(key, stated(signed, **{name: "0" * 64})))
    with pytest.raises(IntegrityError, match="names a file outside of the bundle: "):
        verify(signed.path, [public])


def _without_card(said: dict[str, Any]) -> None:
    rows = said["predicate"]["resources"]
    said["predicate"]["resources"] = [row for row in rows if row["name"] != CARD]
    root = statement.digest({row["name"]: row["digest"] for row in said["predicate"]["resources"]})
    said["subject"][0]["digest"]["sha256"] = root


STATEMENTS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a predicate of another kind", lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "another kind"),
    ("a statement of another version", lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "another kind"),
    ("no predicate", lambda s: s.pop("predicate"), "another kind .*'predicate' is missing"),
    ("shards", lambda s: s["predicate"]["serialization"].update(method="shards"), "'files'"),
    ("another hash", lambda s: s["predicate"]["resources"][0].update(algorithm="blake2"), "'sha256'"),
    ("a digest that is none", lambda s: s["predicate"]["resources"][0].update(digest="xyz"), "another kind"),
    ("a file named twice", lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "twice"),
    ("a subject of another digest", lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "contradicts itself"),
    ("two subjects", lambda s: s["subject"].append(s["subject"][0]), "another kind"),
    ("no card", _without_card, r"is no signature of a bundle: it does not cover card\.json"),
]


@pytest.mark.parametrize(("change", "said"), [row[1:] for row in STATEMENTS], ids=[row[0] for row in STATEMENTS])
def test_a_trusted_key_under_a_statement_of_another_kind_is_not_enough(
    signed: Bundle, key: Path, public: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    about = stated(signed)
    lay(signed, sealed(key, about))
    assert verify(signed.path, [public])
    change(about)
    lay(signed, sealed(key, about))
    with pytest.raises(IntegrityError, match=said):
        verify(signed.path, [public])


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"\xff", b"{" * 100_000, b'{"a":' * 50_000])
def test_a_trusted_key_under_what_is_no_statement_is_not_enough(
    signed: Bundle, key: Path, public: Path, payload: bytes
) -> None:
    lay(signed, sealed(key, payload))
    with pytest.raises(IntegrityError, match=r"model\.sig holds a statement of another kind"):
        verify(signed.path, [public])


def test_a_file_that_is_signed_but_was_not_pulled_is_missing(signed: Bundle, key: Path, public: Path) -> None:
    lay(signed, sealed(key, stated(signed, **{"notes.txt": "0" * 64})))
    with pytest.raises(IntegrityError, match=r"notes\.txt is missing, but signed"):
        verify(signed.path, [public])


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\x00" * 100, b"[" * 100_000, b'{"mediaType": "x"}'])
def test_what_is_no_signature_file_is_refused(signed: Bundle, public: Path, content: bytes) -> None:
    lay(signed, content)
    with pytest.raises(IntegrityError, match=r"model\.sig is no signature file that model-signing 1\.1 writes"):
        verify(signed.path, [public])


def test_a_signature_file_of_many_megabytes_is_not_read(signed: Bundle, public: Path) -> None:
    with (signed.path / SIGNATURE).open("wb") as file:
        file.truncate(statement.LARGEST + 1)
    with pytest.raises(IntegrityError, match=r"model\.sig has 4194305 bytes, .* the most that is read is 4194304"):
        verify(signed.path, [public])


def test_a_signature_of_two_keys_is_refused(signed: Bundle, public: Path) -> None:
    file = json.loads((signed.path / SIGNATURE).read_bytes())
    file["dsseEnvelope"]["signatures"] *= 2
    lay(signed, file)
    with pytest.raises(IntegrityError, match="is no signature file"):
        verify(signed.path, [public])


def test_a_signature_through_sigstore_says_how_to_check_it(signed: Bundle, public: Path) -> None:
    file = json.loads((signed.path / SIGNATURE).read_bytes())
    lay(signed, file | {"verificationMaterial": {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": [{}]}})
    with pytest.raises(IntegrityError, match=r"signed by a certificate, as Sigstore does, .* --identity WHO --issuer"):
        verify(signed.path, [public])


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_signature_file_with_a_changed_byte_is_accepted(
    once: tuple[Bundle, Path, bytes], data: st.DataObject
) -> None:
    bundle, public, content = once
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda other: other != content[at]))
    with pytest.raises(IntegrityError):
        verify(bundle.path, [public], content[:at] + bytes([byte]) + content[at + 1 :])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_part_of_a_signature_file_is_accepted(once: tuple[Bundle, Path, bytes], data: st.DataObject) -> None:
    bundle, public, content = once
    with pytest.raises(IntegrityError):
        verify(bundle.path, [public], content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path, bytes]:
    """A signed bundle, the public key, and the bytes of model.sig, which are accepted as they are."""
    folder = tmp_path_factory.mktemp("once")
    key = write_key(folder / "release.pem")
    bundle = rrmsdk.sign(make_bundle(folder / "made"), key=key)
    content = (bundle.path / SIGNATURE).read_bytes()
    assert verify(bundle.path, [folder / "release.pem.pub"], content)
    return bundle, folder / "release.pem.pub", content


def test_a_key_that_is_not_there_is_said(signed: Bundle) -> None:
    with pytest.raises(DataError, match=r"the key nowhere\.pub cannot be read: No such file"):
        verify(signed.path, [Path("nowhere.pub")])


def test_a_private_key_is_not_taken_for_a_public_one(signed: Bundle, key: Path) -> None:
    with pytest.raises(DataError, match=r"release\.pem is a private key, .* Name the public one: .*release\.pem\.pub"):
        verify(signed.path, [key])


def test_a_file_that_is_no_key_is_said(signed: Bundle) -> None:
    with pytest.raises(DataError, match=r"card\.json is no public key \(PEM\): "):
        verify(signed.path, [signed.path / CARD])


def test_a_key_of_another_kind_is_said(signed: Bundle, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    write_key(tmp_path / "ed", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(DataError, match=r"ed\.pub is a key of another kind; bundles are signed by ECDSA on P-256"):
        verify(signed.path, [tmp_path / "ed.pub"])


class TestRequired:
    @pytest.mark.parametrize("said", [None, ""])
    def test_without_the_setting_nothing_is_asked(
        self, signed: Bundle, monkeypatch: pytest.MonkeyPatch, said: str | None
    ) -> None:
        (signed.path / SIGNATURE).unlink()
        monkeypatch.delenv("RRMSDK_TRUST", raising=False)
        if said is not None:
            monkeypatch.setenv("RRMSDK_TRUST", said)
        assert signature.required(signed.path) is None

    def test_each_key_of_the_setting_counts(
        self, signed: Bundle, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = write_key(tmp_path / "other.pem").with_name("other.pem.pub")
        monkeypatch.setenv("RRMSDK_TRUST", f"{other}{os.pathsep}{public}")
        assert signature.required(signed.path) == verify(signed.path, [public])

    def test_a_key_that_is_not_there_is_an_error_though_another_would_do(
        self, signed: Bundle, public: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RRMSDK_TRUST", f"{public}{os.pathsep}/nowhere/key.pub")
        with pytest.raises(DataError, match=r"the key /nowhere/key\.pub cannot be read"):
            signature.required(signed.path)

    def test_a_setting_that_names_no_key_is_an_error(self, signed: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RRMSDK_TRUST", os.pathsep)
        with pytest.raises(DataError, match=r"RRMSDK_TRUST=':' names no key"):
            signature.required(signed.path)


def _checked_without(module: str, folder: Path, public: Path) -> str:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from pathlib import Path\n"
        "from rrmsdk.runtime.signature import verify\n"
        "try:\n"
        "    print(verify(Path(sys.argv[1]), [Path(sys.argv[2])]).name)\n"
        "except ImportError as exc:\n"
        "    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder, public], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["torch", "model_signing", "OpenSSL", "sigstore"])
def test_checking_needs_no_more_than_cryptography(signed: Bundle, public: Path, module: str) -> None:
    assert _checked_without(module, signed.path, public) == "made\n"


def test_without_cryptography_the_extra_is_named(signed: Bundle, public: Path) -> None:
    said = _checked_without("cryptography", signed.path, public)
    assert said == "checking a signature needs the extra 'trust': pip install 'rrmsdk[trust]'\n"
