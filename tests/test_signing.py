"""What `sign` writes is what OpenSSF's model-signing accepts, and what we accept is no more than what it does."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import rrmsdk
from rrmsdk import files, signing
from rrmsdk.errors import DataError, FieldError, HubError, IntegrityError, SaveError
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import CARD, CONFIG, README, REPORT, SIGNATURE, WEIGHTS, Bundle
from tests.bundles import make_bundle
from tests.signatures import sealed, write_key
from tests.signatures import statement as stated

NOBODY = {"identity": "somebody@example.org", "issuer": "https://accounts.example.org"}


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "made")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "release.pem")


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("release.pem.pub")


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network for Sigstore, and none of the user's files."""
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def theirs(folder: Path, public: Path) -> None:
    """model-signing's own check. Raises ValueError."""
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / SIGNATURE)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_what_is_signed_is_accepted_by_both(made: Bundle, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = write_key(tmp_path / "curve.pem", ec.generate_private_key(curve))
    signed = rrmsdk.sign(made, key=key)
    assert signed.card == made.card
    assert rrmsdk.verify_signature(signed, keys=f"{key}.pub").files == (CARD, CONFIG, WEIGHTS, REPORT)
    theirs(signed.path, Path(f"{key}.pub"))


def test_what_model_signing_signs_by_itself_is_accepted(made: Bundle, key: Path, public: Path) -> None:
    from model_signing import signing as foreign

    foreign.Config().use_elliptic_key_signer(private_key=key).sign(made.path, made.path / SIGNATURE)
    assert rrmsdk.verify_signature(made, keys=public).name == "made"


@pytest.mark.parametrize("name", ["curve.svg", "report.earlier.json"])
def test_what_verbs_leave_beside_a_bundle_holds_no_signing_up(made: Bundle, key: Path, public: Path, name: str) -> None:
    (made.path / name).write_text("")
    rrmsdk.sign(made, key=key)
    assert rrmsdk.verify_signature(made, keys=public).name == "made"


CHANGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("a changed byte", lambda path: (path / WEIGHTS).write_bytes(b"x"), "was changed"),
    ("a missing file", lambda path: (path / REPORT).unlink(), "is missing"),
    ("an extra file", lambda path: (path / "hook.py").touch(), "is extra"),
    ("a signature of something else", lambda path: shutil.copy(path.parent / "other.sig", path / SIGNATURE), "missing"),
    ("no signature", lambda path: (path / SIGNATURE).unlink(), "is not signed"),
    ("half a signature", lambda path: os.truncate(path / SIGNATURE, 1000), "is no signature file"),
]


@pytest.mark.parametrize(("change", "said"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_what_model_signing_refuses_is_refused(
    made: Bundle, key: Path, public: Path, change: Callable[[Path], object], said: str
) -> None:
    from rrmsdk.runtime.signature import verify

    other = sealed(key, stated(made, **{"other.bin": "0" * 64}))
    (made.path.parent / "other.sig").write_text(json.dumps(other))
    rrmsdk.sign(made, key=key)
    theirs(made.path, public)
    change(made.path)
    with pytest.raises((ValueError, OSError)):
        theirs(made.path, public)
    with pytest.raises(IntegrityError, match=said):
        verify(made.path, [public])


def test_a_readme_that_is_edited_later_breaks_nothing(made: Bundle, key: Path, public: Path) -> None:
    (made.path / README).write_text("before")
    rrmsdk.sign(made, key=key)
    (made.path / README).write_text("after")
    assert rrmsdk.verify_signature(made, keys=public)
    theirs(made.path, public)


def test_a_bundle_that_is_attacked_after_it_was_signed_is_refused_until_it_is_signed_again(
    made: Bundle, key: Path, public: Path
) -> None:
    rrmsdk.sign(made, key=key)
    bundles.keep(made, REPORT, made.report.model_copy(update={"seconds": 2.0}))
    with pytest.raises(IntegrityError, match=r"card\.json was changed"):
        rrmsdk.verify_signature(made, keys=public)
    rrmsdk.sign(made, key=key)
    assert rrmsdk.verify_signature(made, keys=public)


def test_a_run_is_signed_as_training_left_it(tmp_path: Path, key: Path, public: Path) -> None:
    small = {"epochs": 0.1, "batch": 64, "validate_every": 0}
    run = rrmsdk.transfer(
        "hub:digits-cnn-linf", {"arch": "cnn", "width_mult": 0.25}, "digits", method="kd",
        train=small, verify=None,
        out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    left = {path.name for path in run.path.iterdir()} - {CARD, *run.card.files}
    assert left >= {"run.toml", "metrics.csv", "last.safetensors"}
    assert rrmsdk.verify_signature(rrmsdk.sign(run, key=key), keys=public)


def test_a_bundle_with_a_stranger_in_its_folder_is_not_signed(made: Bundle, key: Path) -> None:
    (made.path / "notes.txt").touch()
    with pytest.raises(IntegrityError, match=r"notes\.txt is extra, no part of what is signed\. Take it away"):
        rrmsdk.sign(made, key=key)
    assert not (made.path / SIGNATURE).exists()


def test_what_the_zoo_holds_is_signed_in_a_copy(tmp_path: Path, key: Path, public: Path) -> None:
    signed = rrmsdk.sign("hub:digits-cnn-linf", key=key, out=tmp_path / "copy")
    assert signed.path == tmp_path / "copy"
    assert rrmsdk.verify_signature(f"path:{signed.path}", keys=[public]).name == "digits-cnn-linf"
    assert not (rrmsdk.pull("hub:digits-cnn-linf").path / SIGNATURE).exists()


class TestKeys:
    def test_a_new_pair_signs_and_checks(self, made: Bundle, tmp_path: Path) -> None:
        public = signing.new_key(tmp_path / "keys" / "release")
        assert public == tmp_path / "keys" / "release.pub"
        rrmsdk.sign(made, key=tmp_path / "keys" / "release")
        assert rrmsdk.verify_signature(made, keys=public)

    def test_a_new_private_key_is_for_its_user_alone(self, tmp_path: Path) -> None:
        signing.new_key(tmp_path / "release")
        assert stat.S_IMODE((tmp_path / "release").stat().st_mode) == 0o600

    @pytest.mark.parametrize("there", ["release", "release.pub"])
    def test_a_key_is_never_overwritten(self, tmp_path: Path, there: str) -> None:
        (tmp_path / there).write_text("precious")
        with pytest.raises(SaveError, match=rf"{there} is there already, and is not overwritten"):
            signing.new_key(tmp_path / "release")
        assert [path.name for path in tmp_path.iterdir()] == [there]
        assert (tmp_path / there).read_text() == "precious"

    def test_a_key_that_is_not_there_is_said(self, made: Bundle) -> None:
        with pytest.raises(DataError, match=r"the key nowhere\.pem cannot be read: No such file"):
            rrmsdk.sign(made, key="nowhere.pem")

    def test_a_public_key_does_not_sign(self, made: Bundle, public: Path) -> None:
        with pytest.raises(DataError, match=r"release\.pem\.pub is a public key; it is the private one that signs"):
            rrmsdk.sign(made, key=public)

    def test_a_file_that_is_no_key_is_said(self, made: Bundle) -> None:
        with pytest.raises(DataError, match=r"card\.json cannot be read as a private key \(PEM\): "):
            rrmsdk.sign(made, key=made.path / CARD)

    @pytest.mark.parametrize(
        "other",
        [
            lambda: ec.generate_private_key(ec.SECP256K1()),
            lambda: rsa.generate_private_key(65537, 2048),
            ed25519.Ed25519PrivateKey.generate,
        ],
        ids=["another curve", "RSA", "Ed25519"],
    )
    def test_a_key_of_another_kind_is_said(self, made: Bundle, tmp_path: Path, other: Callable[[], object]) -> None:
        key = write_key(tmp_path / "other.pem", other())
        with pytest.raises(
            DataError, match=r"other\.pem is a key of another kind; bundles are signed by ECDSA on P-256"
        ):
            rrmsdk.sign(made, key=key)

    @pytest.fixture
    def locked(self, tmp_path: Path) -> Path:
        return write_key(tmp_path / "locked.pem", password=b"open sesame")

    def test_a_locked_key_asks_for_its_password(self, made: Bundle, locked: Path) -> None:
        with pytest.raises(DataError, match=r"locked\.pem is locked by a password: .*--password.*RRMSDK_KEY_PASSWORD"):
            rrmsdk.sign(made, key=locked)

    def test_a_wrong_password_is_said(self, made: Bundle, locked: Path) -> None:
        with pytest.raises(DataError, match=r"locked\.pem cannot be read .*: the password is wrong, or it is damaged"):
            rrmsdk.sign(made, key=locked, password="sesame")

    def test_a_locked_key_signs_with_its_password(self, made: Bundle, locked: Path) -> None:
        rrmsdk.sign(made, key=locked, password="open sesame")
        assert rrmsdk.verify_signature(made, keys=f"{locked}.pub")

    def test_a_password_of_the_environment_opens_a_locked_key_and_does_not_harm_an_open_one(
        self, made: Bundle, locked: Path, key: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RRMSDK_KEY_PASSWORD", "open sesame")
        rrmsdk.sign(made, key=locked)
        assert rrmsdk.verify_signature(made, keys=f"{locked}.pub")
        rrmsdk.sign(made, key=key)
        assert rrmsdk.verify_signature(made, keys=f"{key}.pub")

    def test_a_new_key_with_a_password_is_locked(self, made: Bundle, tmp_path: Path) -> None:
        signing.new_key(tmp_path / "release", password="open sesame")
        with pytest.raises(DataError, match="is locked by a password"):
            rrmsdk.sign(made, key=tmp_path / "release")
        assert rrmsdk.sign(made, key=tmp_path / "release", password="open sesame")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "sign with a key or through Sigstore"),
        ({"key": "k", "sigstore": True}, "one of them"),
        ({"key": "k", "identity_token": "t"}, "an identity_token and a trust_config are for sigstore=True"),
    ],
)
def test_what_to_sign_with_is_asked_for(made: Bundle, asked: dict, said: str) -> None:
    with pytest.raises(FieldError, match=said):
        rrmsdk.sign(made, **asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, r"name the keys that you trust: keys=.* \(--key\), or RRMSDK_TRUST"),
        ({"keys": []}, "name the keys that you trust"),
        ({"identity": "a@b.c"}, "give both identity and issuer"),
        ({"issuer": "https://b.c"}, "give both identity and issuer"),
        ({"keys": "k", **NOBODY}, "check keys or an identity, not both"),
    ],
)
def test_whom_to_trust_is_asked_for(made: Bundle, asked: dict, said: str) -> None:
    with pytest.raises(FieldError, match=said):
        rrmsdk.verify_signature(made, **asked)


def test_without_keys_those_of_the_setting_are_taken(
    made: Bundle, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRMSDK_TRUST", str(public))
    rrmsdk.sign(made, key=key)
    assert rrmsdk.verify_signature(made).by.startswith("the key ")


class TestSigstore:
    def test_signing_says_that_it_cannot_be_reached(self, made: Bundle, unreachable: None) -> None:
        with pytest.raises(HubError, match=r"could not sign through Sigstore: it could not be reached .*the network"):
            rrmsdk.sign(made, sigstore=True, identity_token="a.b.c")
        assert not (made.path / SIGNATURE).exists()

    def test_checking_says_that_it_cannot_be_reached(self, made: Bundle, key: Path, unreachable: None) -> None:
        rrmsdk.sign(made, key=key)
        with pytest.raises(HubError, match="could not check who signed through Sigstore: it could not be reached"):
            rrmsdk.verify_signature(made, **NOBODY)

    def test_files_are_compared_before_sigstore_is_asked(self, made: Bundle, key: Path, unreachable: None) -> None:
        with pytest.raises(IntegrityError, match="made is not signed"):
            rrmsdk.verify_signature(made, **NOBODY)
        rrmsdk.sign(made, key=key)
        (made.path / "hook.py").touch()
        with pytest.raises(IntegrityError, match=r"hook\.py is extra"):
            rrmsdk.verify_signature(made, **NOBODY)


@pytest.mark.parametrize("module", ["model_signing", "OpenSSL"])
@pytest.mark.slow
def test_signing_without_its_extra_says_what_to_install(made: Bundle, key: Path, module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from rrmsdk.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "sign", f"path:{made.path}", "--key", key], capture_output=True)
    assert done.returncode == 2
    assert b"rrmsdk.sign needs the extra 'sign': pip install 'rrmsdk[sign]'" in done.stderr


class TestCommandLine:
    def rrmsdk(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "rrmsdk", *arguments], capture_output=True, text=True)

    @pytest.mark.slow
    def test_keys_are_made_a_bundle_is_signed_and_checked(self, made: Bundle, tmp_path: Path) -> None:
        key, model = tmp_path / "release", f"path:{made.path}"
        done = self.rrmsdk("sign", "--new-key", key, "--json")
        assert json.loads(done.stdout) == {"key": str(key), "public": f"{key}.pub"}
        done = self.rrmsdk("sign", model, "--key", key, "--json")
        assert json.loads(done.stdout) == {"path": str(made.path), "signature": str(made.path / SIGNATURE)}
        done = self.rrmsdk("verify-signature", model, "--key", f"{key}.pub", "--json")
        assert json.loads(done.stdout)["files"] == [CARD, CONFIG, WEIGHTS, REPORT]
        done = self.rrmsdk("verify-signature", model, "--key", f"{key}.pub")
        assert done.stdout.startswith("made of 2026-01-01, 4 files, is as it was signed by the key ")

    def test_a_refusal_is_one_line_and_exit_code_two(self, made: Bundle, public: Path) -> None:
        done = self.rrmsdk("verify-signature", f"path:{made.path}", "--key", public)
        assert done.returncode == 2
        assert done.stderr.startswith(f"rrmsdk: {made.path} is not signed")
        assert len(done.stderr.splitlines()) == 1

    def test_new_keys_sign_nothing(self, made: Bundle, tmp_path: Path) -> None:
        done = self.rrmsdk("sign", f"path:{made.path}", "--new-key", tmp_path / "release")
        assert done.returncode == 2
        assert "--new-key makes keys and signs nothing" in done.stderr
        assert not (tmp_path / "release").exists()

    def test_a_model_is_asked_for(self, key: Path) -> None:
        done = self.rrmsdk("sign", "--key", key)
        assert done.returncode == 2
        assert "name what to sign: rrmsdk sign path:DIR --key KEY" in done.stderr


def test_a_signature_is_copied_with_its_bundle(made: Bundle, key: Path, public: Path, tmp_path: Path) -> None:
    rrmsdk.sign(made, key=key)
    copy = rrmsdk.pull(f"path:{made.path}", tmp_path / "copy")
    assert files.sha256(copy.path / SIGNATURE) == files.sha256(made.path / SIGNATURE)
    assert rrmsdk.verify_signature(copy, keys=public)
