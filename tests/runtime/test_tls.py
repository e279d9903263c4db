"""HTTPS and gRPC over TLS with a certificate made here, by clients that check it; and files that are none."""

from __future__ import annotations

import json
import ssl
import urllib.request
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

import rrmsdk
from rrmsdk.errors import FieldError
from rrmsdk.runtime import server
from rrmsdk.runtime.tls import Tls, open_tls
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.served import make_served, some_digits
from tests.test_serving import ended, started


def make_pair(folder: Path, password: bytes | None = None) -> Tls:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder.mkdir(exist_ok=True)
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    (folder / "cert.pem").write_bytes(cert.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    return Tls(folder / "cert.pem", folder / "key.pem")


@pytest.fixture
def pair(tmp_path: Path) -> Tls:
    return make_pair(tmp_path / "tls")


def test_http_and_grpc_are_answered_over_tls_and_not_in_the_clear(tmp_path: Path, pair: Tls) -> None:
    pixels, service = some_digits(2), prepared(make_served(tmp_path / "b"), Serving(name="digits", threads=1))
    wanted = service.store.find(None).session.predict(pixels)
    sock = server.listening("127.0.0.1", 0)
    address = server.address(sock)
    with server.running(service, server.listening("127.0.0.1", 0), tls=pair, grpc=sock) as url:
        assert url.startswith("https://127.0.0.1:")
        host = url.removeprefix("https://")
        trusted = {"ssl_context_factory": lambda: ssl.create_default_context(cafile=str(pair.cert))}
        with closing(tritonclient.http.InferenceServerClient(host, ssl=True, **trusted)) as client:
            given = tritonclient.http.InferInput("pixels", [2, 1, 8, 8], "FP32").set_data_from_numpy(pixels)
            np.testing.assert_array_equal(client.infer("digits", [given]).as_numpy("logits"), wanted)
        with closing(
            tritonclient.grpc.InferenceServerClient(address, ssl=True, root_certificates=str(pair.cert))
        ) as client:
            given = tritonclient.grpc.InferInput("pixels", [2, 1, 8, 8], "FP32").set_data_from_numpy(pixels)
            np.testing.assert_array_equal(client.infer("digits", [given]).as_numpy("logits"), wanted)
        with pytest.raises(OSError, match=r"(?i)connection|remote|closed"):
            urllib.request.urlopen(f"http://{host}/v2", timeout=30)
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):  # by a client that trusts others alone
            urllib.request.urlopen(f"{url}/v2", timeout=30)
        with (
            closing(tritonclient.grpc.InferenceServerClient(address)) as client,
            pytest.raises(Exception, match="UNAV"),
        ):
            client.is_server_live()


def test_the_verb_serves_both_over_tls(tmp_path: Path, pair: Tls) -> None:
    options = ["--grpc-port", 0, "--tls-cert", pair.cert, "--tls-key", pair.key, "--drain", 0]
    with started(make_served(tmp_path / "b").path, *options) as process:
        context = ssl.create_default_context(cafile=str(pair.cert))
        assert json.loads(urllib.request.urlopen(f"{process.url}/v2", context=context).read())["name"] == "rrmsdk"
        with closing(
            tritonclient.grpc.InferenceServerClient(process.told["grpc"], ssl=True, root_certificates=str(pair.cert))
        ) as client:
            assert client.is_model_ready("b")
        process.process.terminate()
        assert process.process.wait(30) == 0


def test_neither_is_no_tls() -> None:
    assert open_tls(None, None) is None


def test_a_certificate_without_its_key_is_told_what_to_type(tmp_path: Path, pair: Tls) -> None:
    code, told = ended(make_served(tmp_path / "b").path, "--tls-cert", pair.cert)
    assert (code, told) == (
        2,
        "rrmsdk: a certificate and its key go together: give --tls-cert FILE and --tls-key FILE, or neither\n",
    )
    with pytest.raises(FieldError, match="go together"):
        rrmsdk.serve(tmp_path / "b", tls_key=pair.key)


@pytest.mark.parametrize("which", ["certificate", "key"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, pair: Tls, which: str) -> None:
    for path, why in ((tmp_path / "nowhere", "No such file"), (tmp_path, "Is a directory")):
        given = (path, pair.key) if which == "certificate" else (pair.cert, path)
        with pytest.raises(FieldError, match=f"the TLS {which} {path} cannot be read: {why}"):
            open_tls(*given)


def test_the_key_of_another_certificate_is_told(tmp_path: Path, pair: Tls) -> None:
    other = make_pair(tmp_path / "other")
    with pytest.raises(FieldError, match=f"the TLS key {other.key} is not that of the certificate {pair.cert}"):
        open_tls(pair.cert, other.key)


def test_a_key_with_a_password_is_told_how_to_be_written_without(tmp_path: Path) -> None:
    locked = make_pair(tmp_path / "locked", b"secret")
    with pytest.raises(FieldError, match=f"asks for a password. Write one without: openssl pkey -in {locked.key}"):
        open_tls(locked.cert, locked.key)


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_pem_is_told(tmp_path: Path, pair: Tls, which: int) -> None:
    (tmp_path / "text").write_text("hello")
    given = [pair.cert, pair.key]
    given[which] = tmp_path / "text"
    with pytest.raises(FieldError, match=f"{given[0]} and {given[1]} are no certificate and key in PEM"):
        open_tls(given[0], given[1])
