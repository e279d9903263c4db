"""Who signed through Sigstore is checked on a signature that somebody made through the public one, without the network.

tests/sigstore/model.sig is that of two files, `signme-1` and `signme-2`, by a developer of model-signing: data of
its own tests (github.com/sigstore/model-transparency, scripts/tests/v1.1.0-sigstore, Apache-2.0). What the public
Sigstore's certificates and logs are, its client ships.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sigstore

import rrmsdk
from rrmsdk.errors import DataError, FieldError, IntegrityError
from rrmsdk.schema.bundle import SIGNATURE
from rrmsdk.signing import _by_whom, _trust
from tests.bundles import make_bundle

WHO, ISSUER = "stefanb@us.ibm.com", "https://sigstore.verify.ibm.com/oauth2"


def trust_config(host: str, to: Path) -> Path:
    store = Path(sigstore.__file__).parent / "_store" / f"https%3A%2F%2Ftuf-repo-cdn.{host}"
    parts = {"trustedRoot": "trusted_root.json", "signingConfig": "signing_config.v0.2.json"}
    told: dict[str, Any] = {name: json.loads((store / file).read_text()) for name, file in parts.items()}
    to.write_text(json.dumps({"mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"} | told))
    return to


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    return trust_config("sigstore.dev", tmp_path / "trust.json")


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    folder = tmp_path / "signed"
    folder.mkdir()
    for name in ("signme-1", "signme-2"):
        (folder / name).write_text(name)
    shutil.copy(Path(__file__).parent / "sigstore" / SIGNATURE, folder)
    return folder


def test_who_signed_is_known_again(signed: Path, trust: Path) -> None:
    _by_whom(signed, WHO, ISSUER, _trust(trust))


@pytest.mark.parametrize(
    ("who", "issuer"), [("somebody@us.ibm.com", ISSUER), (WHO, "https://accounts.google.com")], ids=["who", "issuer"]
)
def test_somebody_else_is_not_taken_for_them(signed: Path, trust: Path, who: str, issuer: str) -> None:
    with pytest.raises(IntegrityError, match=f"is not signed by {who}"):
        _by_whom(signed, who, issuer, _trust(trust))


def test_a_file_that_was_changed_is_seen(signed: Path, trust: Path) -> None:
    (signed / "signme-2").write_text("signme-3")
    with pytest.raises(IntegrityError, match="is not signed by"):
        _by_whom(signed, WHO, ISSUER, _trust(trust))


def test_another_signature_under_the_same_certificate_is_none(signed: Path, trust: Path) -> None:
    told = json.loads((signed / SIGNATURE).read_text())
    (made,) = told["dsseEnvelope"]["signatures"]
    made["sig"] = made["sig"][:20] + ("A" if made["sig"][20] != "A" else "B") + made["sig"][21:]
    (signed / SIGNATURE).write_text(json.dumps(told))
    with pytest.raises(IntegrityError, match="is not signed by"):
        _by_whom(signed, WHO, ISSUER, _trust(trust))


def test_what_another_sigstore_vouches_for_does_not_count(signed: Path, tmp_path: Path) -> None:
    staging = trust_config("sigstage.dev", tmp_path / "staging.json")
    with pytest.raises(IntegrityError, match="is not signed by"):
        _by_whom(signed, WHO, ISSUER, _trust(staging))


def test_a_signature_of_something_else_is_none_of_a_bundle(signed: Path, trust: Path, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "made")
    shutil.copy(signed / SIGNATURE, made.path)
    with pytest.raises(IntegrityError, match=r"is no signature of a bundle: it does not cover card\.json"):
        rrmsdk.verify_signature(made, identity=WHO, issuer=ISSUER, trust_config=trust)


def test_a_trust_config_that_is_none_is_said(tmp_path: Path) -> None:
    made, nothing = make_bundle(tmp_path / "made"), tmp_path / "nothing.json"
    with pytest.raises(DataError, match=r"nothing\.json cannot be read: No such file"):
        _trust(nothing)
    nothing.write_text("{}")
    with pytest.raises(DataError, match=r"nothing\.json is no ClientTrustConfig of Sigstore"):
        _trust(nothing)
    with pytest.raises(FieldError, match="a trust_config is for an identity"):
        rrmsdk.verify_signature(made, keys="k", trust_config=nothing)
    with pytest.raises(FieldError, match="are for sigstore=True"):
        rrmsdk.sign(made, key="k", trust_config=nothing)
