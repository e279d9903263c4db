"""What the server answers over HTTP, as OpenAPI 3.1: one line an address, with the schemas of what goes in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from rrmsdk.runtime import tensors
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.service import Service
from rrmsdk.runtime.v2 import LENGTH

LARGEST_EXAMPLE = 4096  # numbers of an image that is still written out

_Schema = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """takes, gives: names of schemas below. who: may ask."""

    method: Literal["get", "post"]
    path: str
    says: str
    gives: str
    takes: str | None = None
    who: Literal["all", "token", "admin"] = "token"


_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
_STORE = "/v2/repository/models/{model}"
OPERATIONS = (
    Operation("get", "/", "A page on which an image can be dropped", "html", who="all"),
    Operation("get", "/card", "What is known of the version that answers, and how robust it was found", "Card"),
    Operation("get", "/metrics", "Counts and times, for Prometheus", "text"),
    Operation("get", "/openapi.json", "This page", "Object"),
    Operation("post", "/predict", "Classes of one PNG or JPEG file", "Predicted", "image"),
    Operation("get", "/v2", "Name, version and extensions of the server", "Server"),
    Operation("get", "/v2/health/live", "Whether the process answers", "Live", who="all"),
    Operation("get", "/v2/health/ready", "Whether it may be sent requests; 503 if not", "Ready", who="all"),
    Operation("get", "/v2/models/stats", "What was answered so far, by version", "Statistics"),
    *(
        operation
        for place, which in ((_MODEL, "the version that answers"), (_VERSION, "a version"))
        for operation in (
            Operation("get", place, f"Inputs and outputs of {which}", "Metadata"),
            Operation("get", f"{place}/ready", f"Whether {which} is loaded", "ModelReady"),
            Operation("get", f"{place}/config", f"Limits and hash of {which}, as Triton has it", "Config"),
            Operation("get", f"{place}/stats", f"What was answered so far by {which}", "Statistics"),
            Operation("get", f"{place}/drift", f"How far what {which} sees is from what it was made for", "Drift"),
            Operation("post", f"{place}/infer", f"Logits, or classes, of images by {which}", "Inferred", "Infer"),
        )
    ),
    Operation("post", "/v2/repository/index", "All versions", "Index", "Ask", "admin"),
    Operation("post", f"{_STORE}/load", "Let a version answer", "Swapped", "Change", "admin"),
    Operation("post", f"{_STORE}/rollback", "Let the version answer that did before", "Swapped", "Change", "admin"),
    Operation("post", f"{_STORE}/unload", "Take a version, or all, out of service", "Unloaded", "Change", "admin"),
    Operation("get", f"{_STORE}/canary", "Which version answers a share of the requests", "Canary", who="admin"),
    Operation("post", f"{_STORE}/canary", "Start, change, end or promote it", "Canary", "Trial", "admin"),
    Operation("get", f"{_STORE}/shadow", "Which version computes all again, and how it differs", "Shadow", who="admin"),
    Operation("post", f"{_STORE}/shadow", "Start or end it", "Shadow", "Trial", "admin"),
)


def page(service: Service) -> dict[str, Any]:
    """Of the model as it is served now: its name, its shape, and what tokens are asked for."""
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one, service)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"rrmsdk serves {service.name}",
            "version": service.release,
            "description": "The Open Inference Protocol v2, and an address for images.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(_datatypes(service)),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "admin": {"type": "http", "scheme": "bearer", "description": "Of those who may change versions."},
            },
        },
    }


def _operation(one: Operation, service: Service) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": one.says,
        "operationId": f"{one.method}_{re.sub(r'[^a-z0-9]+', '_', one.path).strip('_') or 'page'}",
        "responses": {
            "200": {"description": one.says, "content": _given(one.gives)},
            "default": {"description": "Refused, and why", "content": _given("Error")},
        },
        "parameters": [_named(name, service) for name in re.findall(r"{(\w+)}", one.path)],
    }
    if one.path == "/v2/health/ready":
        made["responses"]["503"] = {"description": "Not ready", "content": _given(one.gives)}
    if one.takes == "Infer":
        about = "Bytes of the JSON, where the tensor follows it as bytes"
        header = {"name": LENGTH, "in": "header", "description": about, "schema": {"type": "integer", "minimum": 1}}
        made["parameters"].append(header)
    if one.takes is not None:
        made["requestBody"] = {"required": one.takes in ("Infer", "image"), "content": _taken(one.takes, service)}
    asked = {"all": None, "token": service.access.tokens and "token", "admin": "admin"}[one.who]
    return made | {"security": [{asked: []}] if asked else []}


def _named(name: str, service: Service) -> dict[str, Any]:
    known = [service.name] if name == "model" else [one.version for one in service.store.named] or ["1"]
    schema = {"type": "string", "enum": known}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": known[0]}


def _given(name: str) -> dict[str, Any]:
    if name in ("html", "text"):
        return {"text/html" if name == "html" else "text/plain": {"schema": {"type": "string"}}}
    answer = {"application/json": {"schema": _ref(name)}}
    return answer | ({"application/octet-stream": {}} if name == "Inferred" else {})


def _taken(name: str, service: Service) -> dict[str, Any]:
    if name == "image":
        return {"image/png": {}, "image/jpeg": {}}
    examples = {
        "Ask": {"ready": True},
        "Change": {"parameters": {}},
        "Trial": {"parameters": {"stop": True}},
        "Infer": _example(service),
    }
    content: dict[str, Any] = {"schema": _ref(name)}
    if examples[name] is not None:
        content["example"] = examples[name]
    return {"application/json": content} | ({"application/octet-stream": {}} if name == "Infer" else {})


def _example(service: Service) -> dict[str, Any] | None:
    """One grey image; None where that would be long, or nothing is loaded."""
    try:
        session = service.store.find(None).session
    except Refused:
        return None
    channels, height, width = session.input_shape
    if prod(session.input_shape) > LARGEST_EXAMPLE:
        return None
    grey = {"name": session.ends[0], "datatype": "UINT8", "shape": [1, height, width, channels]}
    return {"id": "1", "inputs": [grey | {"data": [127] * prod(session.input_shape)}]}


def _datatypes(service: Service) -> list[str]:
    """That the model takes; all where nothing is loaded."""
    try:
        return list(tensors.taken(service.store.find(None).session))
    except Refused:
        return list(tensors.BYTES)


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(fields: Mapping[str, _Schema], *optional: str) -> _Schema:
    return {"type": "object", "properties": dict(fields), "required": [name for name in fields if name not in optional]}


def _array(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _schemas(datatypes: list[str]) -> dict[str, _Schema]:
    """datatypes: that may come in."""
    text, yes, number, count = ({"type": kind} for kind in ("string", "boolean", "number", "integer"))
    shape, spent = _array(count), _object({"count": count, "ns": count})
    tensor = _object({"name": text, "datatype": text, "shape": shape})
    end = _object({"name": text, "data_type": text, "dims": shape})
    wanted = {"binary_data": yes, "classification": {"type": "integer", "minimum": 1}}
    output = {"name": text, "parameters": _object(wanted, *wanted)}
    settings = {"timeout": {"type": "integer", "minimum": 0}, "binary_data_output": yes}
    given = {
        "name": text, "datatype": {"enum": datatypes}, "data": _array(number),
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4},
        "parameters": _object({"binary_data_size": count}, "binary_data_size"),
    }  # fmt: skip
    change, trial = {"version": text, "pin": yes}, {"version": text, "percent": number, "stop": yes, "promote": yes}
    return {
        "Error": _object({"error": text}),
        "Object": {"type": "object"},
        "Live": _object({"live": yes}),
        "Ready": _object({"ready": yes}),
        "ModelReady": _object({"name": text, "version": text, "ready": yes}),
        "Server": _object({"name": text, "version": text, "extensions": _array(text)}),
        "Metadata": _object({
            "name": text, "versions": _array(text), "platform": text, "inputs": _array(tensor),
            "outputs": _array(tensor),
        }),
        "Config": _object({
            "name": text, "platform": text, "backend": text, "max_batch_size": count, "input": _array(end),
            "output": _array(end), "dynamic_batching": {"type": "object"}, "parameters": {"type": "object"},
        }),
        "Statistics": _object({"model_stats": _array(_object({
            "name": text, "version": text, "last_inference": count, "inference_count": count,
            "execution_count": count, "inference_stats": {"type": "object", "additionalProperties": spent},
            "batch_stats": _array({"type": "object"}),
        }))}),
        "Infer": _object({
            "id": text | {"maxLength": tensors.LONGEST_ID},
            "inputs": _array(_object(given, "data", "parameters")) | {"minItems": 1, "maxItems": 1},
            "outputs": _array(_object(output, "parameters")),
            "parameters": _object(settings, *settings),
        }, "id", "outputs", "parameters"),
        "Inferred": _object({
            "model_name": text, "model_version": text, "id": text, "outputs": _array(_object({
                "name": text, "datatype": {"enum": ["FP32", "BYTES"]}, "shape": shape,
                "data": _array({"type": ["number", "string"]}), "parameters": {"type": "object"},
            }, "data", "parameters")),
        }, "id"),
        "Ask": _object({"ready": yes}, "ready"),
        "Change": _object({"parameters": _object(change, *change)}, "parameters"),
        "Index": _array(_object({
            "name": text, "version": text, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": text,
        })),
        "Trial": _object({"parameters": _object(trial, *trial)}),
        "Canary": _object({
            "name": text, "canary": {"type": ["object", "null"]}, "compared": _array({"type": "object"}),
        }),
        "Shadow": _object({"name": text, "version": text, "shadow": {"type": ["object", "null"]}}),
        "Drift": {"type": "object"},
        "Swapped": _object({"name": text, "version": text, "sha256": text}),
        "Unloaded": _object({"name": text}),
        "Card": _object({
            "model": text, "version": text, "sha256": text, "card": {"type": "object"},
            "report": {"type": ["object", "null"]}, "warning": text,
        }),
        "Predicted": _object({
            "model_name": text, "model_version": text, "id": text, "label": text, "confidence": number,
            "margin": number, "low_margin": yes, "size": _array(count),
            "classes": _array(_object({"label": text, "probability": number})),
        }),
    }  # fmt: skip
