"""Tensors of the Open Inference Protocol as bytes: JSON, or JSON with binary data behind it.

kserve/open-inference-protocol, specification/protocol/inference_rest.md, says what the JSON holds;
triton-inference-server/server, docs/protocol/extension_binary_data.md, how tensors follow it in little-endian order, as
`binary_data_size` says of each, and that the header `Inference-Header-Content-Length` gives the size of the JSON.

What this server has no use for is refused: other datatypes, and parameters that it would have to pass over.
"""

from __future__ import annotations

import enum
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from numpy.typing import NDArray

from stack.export.lookup import MAX_TEXT_BYTES
from stack.serve.request import MAX_NUMBER, RequestError

MAX_NAME = 256
"""Characters in the name of a tensor, and in the `id` of a request."""
MAX_DIM = (1 << 31) - 1
MAX_TENSORS = 1024
_LENGTH = struct.Struct("<I")
_ABSENT = Raw(b"")
_Name = Annotated[str, Meta(max_length=MAX_NAME)]
_Dim = Annotated[int, Meta(ge=0, le=MAX_DIM)]
_Size = Annotated[int, Meta(ge=0, le=MAX_DIM)]
T = TypeVar("T")


class Datatype(enum.Enum):
    """Of the protocol's types those that are used here."""

    INT64 = "INT64"
    BYTES = "BYTES"
    FP32 = "FP32"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A tensor as a model has it. `dims`: a number is the length itself, a letter one that a request chooses, the same
    in all tensors that name it."""

    name: str
    datatype: Datatype
    dims: tuple[int | str, ...]

    @property
    def shape(self) -> list[int]:
        """As metadata tell it: -1 is any length."""
        return [dim if isinstance(dim, int) else -1 for dim in self.dims]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor that was read; `values` row-major: a list, of binary FP32 an array, as nobody looks at thousands of
    ranking features one by one."""

    shape: tuple[int, ...]
    values: Any


@dataclass(frozen=True, kw_only=True)
class Given:
    """An input as it was sent: `data` is JSON, or binary."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Raw | memoryview


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request. `outputs`: by name whether it is to be binary; empty where all are asked for, as `binary` says."""

    id: str | None
    model_name: str | None
    inputs: Sequence[Given]
    outputs: dict[str, bool]
    binary: bool


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output to be sent."""

    name: str
    array: NDArray[np.float32]
    binary: bool


class _InputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    binary_data_size: _Size | UnsetType = UNSET


class _OutputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    binary_data: bool | UnsetType = UNSET


class _RequestParameters(Struct, frozen=True, forbid_unknown_fields=True):
    binary_data_output: bool = False


class _Input(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    datatype: _Name
    shape: Annotated[list[_Dim], Meta(max_length=8)]
    parameters: _InputParameters = _InputParameters()
    data: Raw = _ABSENT


class _Output(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    parameters: _OutputParameters = _OutputParameters()


class _Envelope(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inputs: Annotated[list[_Input], Meta(max_length=MAX_TENSORS)]
    id: _Name | None = None
    model_name: _Name | None = None
    parameters: _RequestParameters = _RequestParameters()
    outputs: Annotated[list[_Output], Meta(max_length=MAX_TENSORS)] = []


_ENVELOPES = msgspec.json.Decoder(_Envelope)
_Whole = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Number = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT_BYTES)]
_DATA: dict[Datatype, msgspec.json.Decoder[Any]] = {
    Datatype.INT64: msgspec.json.Decoder(list[_Whole | list[_Whole]]),
    Datatype.FP32: msgspec.json.Decoder(list[_Number | list[_Number]]),
    Datatype.BYTES: msgspec.json.Decoder(list[_Text | list[_Text]]),
}
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_WIDTHS = {Datatype.INT64: "<i8", Datatype.FP32: "<f4"}


def parse(body: bytes, json_size: str | None) -> Asked:
    """A body and the value of `Inference-Header-Content-Length`, where there is one.

    Raises: `RequestError` 400 where the body is not what the header and sizes say, 422 for what is not accepted in it.
    """
    size = len(body) if json_size is None else _json_size(json_size, len(body))
    envelope = _decode(_ENVELOPES, body[:size])
    rest, at = memoryview(body)[size:], 0
    inputs = []
    for one in envelope.inputs:
        num_bytes = one.parameters.binary_data_size
        if (num_bytes is UNSET) == (bytes(one.data) == b""):
            raise RequestError(422, f"input {one.name!r} needs either `data` or the parameter `binary_data_size`")
        data: Raw | memoryview = one.data
        if num_bytes is not UNSET:
            data = rest[at : at + num_bytes]
            at += num_bytes
            if at > len(rest):
                raise RequestError(400, f"input {one.name!r} has {num_bytes} bytes of binary data, of which "
                                   f"{len(data)} are behind the JSON: `inference-header-content-length` says where it "
                                   "ends")  # fmt: skip
        inputs.append(Given(name=one.name, datatype=one.datatype, shape=tuple(one.shape), data=data))
    if at < len(rest):
        raise RequestError(400, f"{len(rest) - at} bytes at the end of the body are of no input")
    binary = envelope.parameters.binary_data_output
    return Asked(
        id=envelope.id,
        model_name=envelope.model_name,
        inputs=inputs,
        outputs=_outputs(envelope.outputs, binary),
        binary=binary,
    )


def fit(given: Given, spec: Spec) -> None:
    """Raises: `RequestError` 422 where an input is of another datatype or number of dimensions."""
    if given.datatype != spec.datatype.value:
        raise RequestError(422, f"input {spec.name!r} is {spec.datatype.value}, not {given.datatype[:20]!r}")
    if len(given.shape) != len(spec.dims):
        raise RequestError(422, f"input {spec.name!r} has a shape of {len(given.shape)} dimensions, not {spec.shape}")


def take(given: Given, spec: Spec) -> Tensor:
    """The values of an input that fits, checked: FP32 finite, at most `MAX_NUMBER` in size; BYTES are UTF-8.

    Raises: `RequestError` 422, also where there are more or less of them than its shape says.
    """
    num_values = math.prod(given.shape)
    if isinstance(given.data, memoryview):
        values = _binary(given.data, spec, num_values)
    else:
        _refuse_lists(bytes(given.data), spec, given.shape)
        values = _decode(_DATA[spec.datatype], given.data, spec.name)
        if len(values) <= max(num_values, *given.shape):
            values = _flat(values, spec, given.shape)
        if len(values) != num_values:
            raise RequestError(
                422, f"input {spec.name!r} has {len(values)} values, its shape {list(given.shape)} {num_values}"
            )
    return Tensor(shape=given.shape, values=values)


def write(model: str, version: str, asked: Asked, outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """The body of a response, and the size of its JSON where binary data follow it."""
    told, behind = [], []
    for output in outputs:
        entry: dict[str, object] = {"name": output.name, "datatype": "FP32", "shape": list(output.array.shape)}
        if output.binary:
            data = output.array.astype("<f4", copy=False).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            behind.append(data)
        else:
            entry["data"] = output.array.ravel().tolist()
        told.append(entry)
    answer: dict[str, object] = {"model_name": model, "model_version": version, "outputs": told}
    if asked.id is not None:
        answer["id"] = asked.id
    head = msgspec.json.encode(answer)
    return b"".join([head, *behind]), len(head) if behind else None


def _json_size(text: str, num_bytes: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or int(text) > num_bytes:
        raise RequestError(
            400, f"inference-header-content-length {text[:20]!r} is no size within the {num_bytes} bytes of the body"
        )
    return int(text)


def _outputs(outputs: Sequence[_Output], binary: bool) -> dict[str, bool]:
    asked: dict[str, bool] = {}
    for one in outputs:
        if one.name in asked:
            raise RequestError(422, f"output {one.name!r} is asked for twice")
        own = one.parameters.binary_data
        asked[one.name] = binary if own is UNSET else own
    return asked


def _refuse_lists(data: bytes, spec: Spec, shape: tuple[int, ...]) -> None:
    """Counts lists before they are made, which would take a hundred times as long. Texts may hold brackets."""
    most = 1 + (shape[0] if len(shape) == 2 else 0)
    if data.count(b"[") > most and _TEXT.sub(b"", data).count(b"[") > most:
        raise RequestError(422, f"input {spec.name!r} has nested data that do not have its shape {list(shape)}")


def _flat(values: list[Any], spec: Spec, shape: tuple[int, ...]) -> list[Any]:
    """Row-major values of flat or nested JSON."""
    num_lists = sum(isinstance(value, list) for value in values)
    if not num_lists:
        return values
    if len(shape) != 2 or num_lists < len(values) or [len(row) for row in values] != [shape[1]] * shape[0]:
        raise RequestError(422, f"input {spec.name!r} has nested data that do not have its shape {list(shape)}")
    return [value for row in values for value in row]


def _binary(data: memoryview, spec: Spec, num_values: int) -> list[Any] | NDArray[Any]:
    if spec.datatype is Datatype.BYTES:
        return _texts(data, spec.name, num_values)
    dtype = np.dtype(_WIDTHS[spec.datatype])
    if len(data) != num_values * dtype.itemsize:
        raise RequestError(
            422, f"input {spec.name!r} has {len(data)} bytes of binary data: {num_values} {spec.datatype.value} need "
            f"{num_values * dtype.itemsize}"
        )  # fmt: skip
    array: NDArray[Any] = np.frombuffer(data, dtype=dtype)
    if spec.datatype is Datatype.FP32 and not (np.abs(array) <= MAX_NUMBER).all():  # false of NaN
        raise RequestError(422, f"input {spec.name!r} holds a number that is not finite, or beyond {MAX_NUMBER:g}")
    if spec.datatype is Datatype.FP32:
        return array
    values: list[Any] = array.tolist()
    return values


def _texts(data: memoryview, name: str, num_values: int) -> list[str]:
    """Texts, each behind its number of bytes."""
    texts: list[str] = []
    at = 0
    while at < len(data) and len(texts) < num_values:
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if end > len(data):
            raise RequestError(422, f"input {name!r}: binary element {len(texts)} is cut off")
        texts.append(_text(data[start:end], name))
        at = end
    if len(texts) != num_values:
        raise RequestError(422, f"input {name!r} has {len(texts)} binary elements, its shape {num_values}")
    if at < len(data):
        raise RequestError(422, f"input {name!r} has more binary elements than the {num_values} of its shape")
    return texts


def _text(data: memoryview, name: str) -> str:
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(422, f"input {name!r} holds an element that is not UTF-8") from error
    if len(text) > MAX_TEXT_BYTES:
        raise RequestError(422, f"input {name!r} holds an element of more than {MAX_TEXT_BYTES} characters")
    return text


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | Raw, name: str = "") -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        text = " ".join(str(error).split())[:MAX_NAME]  # it may repeat a field's name, whatever that is
        raise RequestError(422, f"input {name!r}: {text.replace('`$', '`data')}" if name else text) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "the body is not JSON in UTF-8") from error
