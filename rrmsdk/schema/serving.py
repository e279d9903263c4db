"""How a server is to run: the options of `rrmsdk serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rrmsdk.schema.parity import Input, Precision
from rrmsdk.schema.value import Value

Count = Annotated[int, Field(ge=1)]


class Serving(Value):
    """models: a folder of versions to change between while it runs, each a bundle: `DIR/VERSION/`.

    name: of the model in addresses; None: that in its card.
    port: 0: a free one, which the first line of the log tells.
    grpc_port: at which the protocol is spoken over gRPC too; 0: a free one, also in the first line; None: nowhere.
    tls_cert, tls_key: PEM files, both or neither, for HTTP and gRPC; they are read once.
    token_file: tokens, one a line, one of which clients have to show. The file may change meanwhile.
    admin_token_file: the same for those who may change which version answers; None: nobody may.
    insecure: listen beyond this machine without tokens.
    precision, input: which graph of the bundle answers, as in `export`; UINT8 tensors are taken by both inputs.
    threads: that work on one batch; None: as many as there are cores.
    max_batch, max_queue: images; a request has at most `max_batch`, and is answered 503 where the queue is full.
    timeout: seconds after which a request is answered 504.
    max_body: bytes of an infer request; None: what `max_batch` images take as JSON, at most 32 MB.
    window: images after which those that were seen are compared with what the export expects (`/v2/models/M/drift`).
    drain: seconds between telling 'not ready' and refusing connections, once it is to stop.
    quiet: no line for each request.
    watch: a branch or a tag on the Hub (`hub:ORG/NAME@TAG`), or the folder of versions; what is newer there and passes
        all checks takes the place of what answers. What comes from the Hub is put into `models`.
    every: seconds between two looks at it, more or less by a fifth; longer while it cannot be reached.
    keep: versions from the Hub that stay on the disk beside those in use.
    canary: `VERSION=PERCENT`: a version of `models` that answers that share of the requests.
    shadow: a version of `models` that computes all again in the background, to be compared.
    """

    models: Path | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    admin_token_file: Path | None = None
    insecure: bool = False
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    precision: Precision = "fp32"
    input: Input = "float"
    threads: Count | None = None
    max_batch: Count = 64
    max_queue: Count = 1024
    timeout: Annotated[float, Field(gt=0)] = 10.0
    max_body: Count | None = None
    window: Count = 1000
    drain: Annotated[float, Field(ge=0)] = 2.0
    quiet: bool = False
    watch: str | Path | None = None
    every: Annotated[float, Field(gt=0, le=86400)] = 60.0
    keep: Annotated[int, Field(ge=0)] = 3
    canary: str | None = None
    shadow: str | None = None
