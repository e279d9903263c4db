"""A classifier behind HTTP that speaks the Open Inference Protocol v2 (KServe, Triton, ...): pixels in, logits out.

https://github.com/kserve/open-inference-protocol, REST with JSON. Torch-free.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import numpy as np
from pydantic import BaseModel, ValidationError

from rrmsdk.errors import EndpointError, FieldError, IntegrityError, MismatchError
from rrmsdk.runtime.rounding import to_bytes
from rrmsdk.runtime.session import Signature
from rrmsdk.schema.parity import Input

TRIES = 7
WAIT = 0.25  # seconds before the second try; doubled before each further one, 16 s in all
_AGAIN = {429: "too many requests", 503: "overloaded or not ready"}
_ROOM = 1 << 20  # bytes that an answer may have beside its logits
_NUMBER = 64  # bytes that one logit may take in JSON

Answer = TypeVar("Answer", bound=BaseModel)


class _Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(BaseModel):
    name: str
    versions: list[str] = []
    platform: str = ""
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _Logits(BaseModel):
    name: str
    shape: list[int]
    data: list[Any]


class _Inferred(BaseModel):
    model_version: str | None = None
    outputs: list[_Logits]


@dataclass
class Line:
    """Requests to one host, and to no other: redirects are not followed, proxies and netrc not looked at.

    A request that meets 429, 503, a lost connection or silence is sent again, after waits that are always the same.

    timeout: seconds for each request.
    wait: seconds before the second try.
    """

    url: SplitResult
    token: str | None = field(repr=False)
    timeout: float
    tries: int = TRIES
    wait: float = WAIT
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def ask(self, kind: type[Answer], method: str, path: str, body: Any = None, room: int = _ROOM) -> Answer:
        """The JSON that comes back, as a `kind`. Raises EndpointError."""
        sent, why = None if body is None else json.dumps(body).encode(), ""
        for number in range(self.tries):
            if number:
                time.sleep(self.wait * 2 ** (number - 1))
            try:
                status, content = self._once(method, path, sent, room)
            except EndpointError:
                raise
            except ssl.SSLCertVerificationError as exc:
                raise EndpointError(f"{self}: its certificate is not trusted ({exc.verify_message})") from exc
            except (OSError, http.client.HTTPException) as exc:
                self.close()
                why = self.hidden(f"{type(exc).__name__}: {exc}")
                continue
            if status not in _AGAIN:
                return self._read(kind, status, content)
            why = f"{status}, {_AGAIN[status]}"
        raise EndpointError(
            f"{self} did not answer in {self.tries} tries of {self.timeout:g} s (the last: {why}). Is it up? "
            "Otherwise give it smaller batches, or a longer timeout"
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def hidden(self, text: str) -> str:
        """In one line and without the token, which a server may repeat."""
        line = " ".join(text.split())
        return line.replace(self.token, "***") if self.token else line

    def __str__(self) -> str:
        return self.url.geturl()

    def _once(self, method: str, path: str, body: bytes | None, room: int) -> tuple[int, bytes]:
        until = time.monotonic() + self.timeout
        if self._connection is None:
            safe = self.url.scheme == "https"
            kind, port = (http.client.HTTPSConnection, 443) if safe else (http.client.HTTPConnection, 80)
            self._connection = kind(str(self.url.hostname), self.url.port or port, timeout=self.timeout)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        content = bytearray()
        while part := response.read(1 << 12):  # in small parts, so that a slow answer is seen to be one
            content += part
            if len(content) > room:
                self.close()
                raise EndpointError(f"{self} answers with more than {room} bytes: no answer of this protocol")
            if time.monotonic() > until:
                raise TimeoutError("the answer came too slowly")
        if response.length:
            raise http.client.IncompleteRead(bytes(content), response.length)
        return response.status, bytes(content)

    def _read(self, kind: type[Answer], status: int, content: bytes) -> Answer:
        """Raises EndpointError: refused, or not what the protocol promises. The token is in no message."""
        if 300 <= status < 400:
            raise EndpointError(f"{self} redirects to another address ({status}), which is not followed. Give the last")
        if status in (401, 403):
            told = "the token was refused" if self.token else "it wants a token: token=, or --url-token-env NAME"
            raise EndpointError(f"{self} answers {status}: {told}")
        if status != 200:
            raise EndpointError(f"{self} answers {status}: {self._said(content)}.{_hint(status)}")
        try:
            return kind.model_validate(json.loads(content))
        except (ValidationError, ValueError, RecursionError) as exc:
            # Not `from exc`: its message would show what was answered, whatever that is.
            what = f"{exc.error_count()} fields are wrong or missing" if isinstance(exc, ValidationError) else "no JSON"
            raise EndpointError(f"{self} does not speak the Open Inference Protocol v2: {what}") from None

    def _said(self, content: bytes) -> str:
        """The server's own words."""
        try:
            told = json.loads(content)["error"]
        except (ValueError, TypeError, KeyError, RecursionError):
            told = content.decode(errors="replace")
        return self.hidden(str(told))[:200]


def _hint(status: int) -> str:
    return {404: " Is that the model's name?", 413: " Give it smaller batches"}.get(status, "")


@dataclass
class Endpoint:
    """A model behind HTTP, as it described itself.

    input_shape: channels, height and width of one image.
    fixed: images that it takes at once, no more and no fewer; None: any number.
    input: `uint8`: it takes bytes [B, H, W, C], and pixels go to the nearest of 256 levels, as in `Rounding`.
    """

    line: Line = field(repr=False)
    name: str
    versions: tuple[str, ...]
    platform: str
    input_shape: tuple[int, int, int]
    classes: int
    ends: tuple[str, str]
    fixed: int | None
    input: Input
    _version: str | None = None

    @property
    def identity(self) -> str:
        """sha256 over name, versions and platform. It is not one of weights: those are not to be seen from here."""
        told = json.dumps([self.name, self.versions, self.platform])
        return hashlib.sha256(f"open inference protocol v2 {told}".encode()).hexdigest()

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes] of float32 pixels [B, C, H, W] in [0, 1].

        Raises:
            EndpointError: it could not be reached, refused, or answered something else.
            MismatchError: it gives another shape than it promised.
            IntegrityError: another version answers than before.
        """
        size = self.fixed or len(pixels)
        whole = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % size, axis=0)])
        return np.concatenate([self._infer(part) for part in np.split(whole, len(whole) // size)])[: len(pixels)]

    def close(self) -> None:
        self.line.close()

    def _infer(self, pixels: np.ndarray) -> np.ndarray:
        given, asked = self.ends
        # Each float32 as the double that it is: the shortest text of that comes back as the same float32.
        datatype, sent = ("UINT8", to_bytes(pixels)) if self.input == "uint8" else ("FP32", pixels.astype(np.float64))
        tensor = {"name": given, "datatype": datatype, "shape": list(sent.shape), "data": sent.ravel().tolist()}
        body = {"inputs": [tensor], "outputs": [{"name": asked}]}
        room = _ROOM + _NUMBER * len(pixels) * self.classes
        answer = self.line.ask(_Inferred, "POST", f"{self.line.url.path}/infer", body, room)
        if self._version not in (None, answer.model_version):
            raise IntegrityError(
                f"{self.line}: version {self._version} answered before, now {answer.model_version} does. Name one in "
                "the address: .../versions/V"
            )
        self._version = answer.model_version
        return self._logits(answer, len(pixels))

    def _logits(self, answer: _Inferred, many: int) -> np.ndarray:
        found = [one for one in answer.outputs if one.name == self.ends[1]]
        if len(found) != 1:
            names = self.line.hidden(", ".join(one.name for one in answer.outputs))
            raise MismatchError(f"{self.line} was asked for '{self.ends[1]}', and gives '{names}'")
        try:
            with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, and is refused as such
                logits = np.asarray(found[0].data, dtype=np.float64).astype(np.float32)
        except (ValueError, TypeError, OverflowError):
            raise EndpointError(f"{self.line} does not speak the Open Inference Protocol v2: no numbers") from None
        wanted = [many, self.classes]
        if found[0].shape != wanted or logits.size != many * self.classes:
            raise MismatchError(
                f"{self.line} gives {logits.size} numbers of shape {found[0].shape}; it promised {wanted}"
            )
        return logits.reshape(wanted)


def open_endpoint(
    url: str, *, token: str | None = None, timeout: float = 30.0, tries: int = TRIES, wait: float = WAIT
) -> Endpoint:
    """The model at `http://HOST:PORT/v2/models/NAME`, once it has said what it takes.

    Args:
        token: sent as a bearer token to that host.
        timeout, tries, wait: see `Line`.

    Raises:
        FieldError: an address, a token or a timeout that cannot be one.
        EndpointError: it could not be reached, or refused.
        MismatchError: it is no classifier of images.
    """
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise FieldError("the token is empty, or holds a blank, a line break or a letter that no header can carry")
    if not 0 < timeout < threading.TIMEOUT_MAX:
        raise FieldError(f"timeout = {timeout}: seconds, above 0")
    line = Line(_address(url), token, timeout, tries, wait)
    try:
        told = line.ask(_Metadata, "GET", line.url.path)
        signature = _signature(line, told)
    except BaseException:
        line.close()
        raise
    versions = tuple(line.hidden(version) for version in told.versions)
    return Endpoint(line, line.hidden(told.name), versions, line.hidden(told.platform), *signature)


def _address(url: str) -> SplitResult:
    """Raises FieldError. What may be a secret in an address is not shown."""
    try:
        parts = urlsplit(url.rstrip("/"))
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        raise FieldError("that is no address. Type http://HOST:PORT/v2/models/NAME") from None
    if parts.username is not None or parts.query or parts.fragment:
        raise FieldError(
            "the address holds a name, a password, '?' or '#'. Type http://HOST:PORT/v2/models/NAME, and give a token "
            "as token=, or --url-token-env NAME"
        )
    if wrong or "/v2/models/" not in parts.path or not parts.path.isascii() or " " in parts.path:
        raise FieldError(f"'{url}' is no address of a model. Type http://HOST:PORT/v2/models/NAME")
    return parts


def _signature(line: Line, told: _Metadata) -> Signature:
    outputs = [one for one in told.outputs if len(told.outputs) == 1 or one.name == "logits"]
    match [(one.datatype, *one.shape) for one in told.inputs], [(one.datatype, *one.shape) for one in outputs]:
        case [("FP32", batch, c, h, w)], [("FP32", _, k)] if min(c, h, w, k) > 0:
            takes = "float"
        case [("UINT8", batch, h, w, c)], [("FP32", _, k)] if min(c, h, w, k) > 0:
            takes = "uint8"
        case _:
            maps = line.hidden(f"{_shown(told.inputs)} to {_shown(told.outputs)}")
            raise MismatchError(
                f"{line} maps {maps}; a classifier maps one FP32 tensor [-1, C, H, W], or one of UINT8 [-1, H, W, C], "
                "to one of logits [-1, classes]; of several outputs one is called 'logits'"
            )
    return (c, h, w), k, (told.inputs[0].name, outputs[0].name), batch if batch > 0 else None, takes


def _shown(tensors: list[_Tensor]) -> str:
    return ", ".join(f"{one.name} {one.datatype} {one.shape}" for one in tensors) or "nothing"
