"""Where a secret lies: what is read, written, hashed and shown of it is only the place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from rrmsdk.errors import FieldError
from rrmsdk.schema.value import Value

_HOW = "a secret is never written here. Type { env = 'HF_TOKEN' }, or { file = '/run/secrets/hf' } for a mounted one"


class Secret(Value, hide_input_in_errors=True):
    """An environment variable, or a file that holds nothing else. A token itself does not validate.

    env: in capitals, so that a token in its place is none.
    """

    env: Annotated[str, Field(pattern="^[A-Z_][A-Z0-9_]*$")] | None = None
    file: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_place(cls, given: Any) -> Any:
        if not isinstance(given, dict | Secret):
            raise ValueError(_HOW)
        return given

    @model_validator(mode="after")
    def _is_one_place(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError(f"one of env and file is given, not {'both' if self.env else 'none'}: {_HOW}")
        return self

    def __str__(self) -> str:
        return f"${self.env}" if self.env else f"the file {self.file}"


def reveal(secret: Secret) -> str:
    """What lies there now; called where it is used and nowhere else.

    Raises:
        FieldError: nothing lies there. The message names the place.
    """
    try:
        found = os.environ.get(secret.env, "") if secret.env else Path(str(secret.file)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise FieldError(
            f"cannot read the secret in {secret.file}: {getattr(exc, 'strerror', None) or 'no text'}"
        ) from exc
    if not found.strip():
        raise FieldError(f"{secret} holds no secret. {'Set it' if secret.env else 'Write it'} where the job runs")
    return found.strip()
