"""The messages are those of the protocol."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import descriptor
from tritonclient.grpc import (
    service_pb2,
)  # fmt: skip

from rrmsdk.runtime import messages
from rrmsdk.runtime.refused import Refused


def test_every_message_is_that_of_the_protocol_as_nvidias_client_knows_it() -> None:
    """Name, number and type of every field: what is served here is a part of what is said there."""
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    seen: set[str] = set()
    for method in messages.SERVICE.methods:
        other = theirs.methods_by_name[method.name]
        _within(method.input_type, other.input_type, seen)
        _within(method.output_type, other.output_type, seen)
    assert len(seen) > 30


def _within(ours: descriptor.Descriptor, theirs: descriptor.Descriptor, seen: set[str]) -> None:
    assert ours.full_name == theirs.full_name
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
        if field.message_type:
            _within(field.message_type, other.message_type, seen)
        if field.enum_type:
            values = {value.name: value.number for value in other.enum_type.values}
            assert {value.name: value.number for value in field.enum_type.values}.items() <= values.items()


def test_the_committed_descriptors_are_those_of_the_proto_file() -> None:
    text = Path(messages.__file__).with_name("proto").joinpath("inference.proto").read_text()
    written = set(re.findall(r"^ +(?:repeated |map<string, )?\w+>? (\w+ = \d+);", text, flags=re.M))
    file = messages.SERVICE.file
    assert {method.name for method in messages.SERVICE.methods} == set(re.findall(r"rpc (\w+)", text))
    assert set(re.findall(r"message (\w+)", text)) == {
        name for one in file.message_types_by_name.values() for name in (one.name, *one.nested_types_by_name)
        if not name.endswith("Entry")
    }  # fmt: skip
    nested = [one for top in file.message_types_by_name.values() for one in (top, *top.nested_types)]
    fields = {f"{field.name} = {field.number}" for one in nested for field in one.fields}
    fields |= {f"{value.name} = {value.number}" for one in file.enum_types_by_name.values() for value in one.values}
    written |= set(re.findall(r"^ +(TYPE_\w+ = \d+);", text, flags=re.M))
    assert {one for one in fields if one not in ("key = 1", "value = 2")} == written


@pytest.mark.parametrize("field", [b"\x22\x00", b"\x2a\x00", b"\x32\x00", b"\x3a\x00"])
def test_a_request_of_very_many_fields_is_refused_before_they_are_made(field: bytes) -> None:
    inside = b"\x2a" + bytes([0x86, 0x8D, 0x06]) + 50_000 * b"\x22\x00" + b"\x22\x04\x0a\x02ab"  # of one input
    for content in (100_000 * field, inside):
        with pytest.raises(Refused, match="more than 4096 fields"):
            messages.parsed("inference.ModelInferRequest", content)
