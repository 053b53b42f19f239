"""Tensors of the Open Inference Protocol as bytes: read back whole, and refused where they are not what they say."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stack.serve.oip_codec import Datatype, Given, Output, Spec, Tensor, fit, parse, take, write
from stack.serve.request import MAX_NUMBER, RequestError

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
_MOST = float(np.float32(0.99 * MAX_NUMBER))
FP32 = st.floats(-_MOST, _MOST, width=32)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
VALUES = {Datatype.INT64: INT64, Datatype.FP32: FP32, Datatype.BYTES: TEXTS}
WAYS = ("flat", "nested", "binary")


def binary_of(datatype: str, values: Sequence[Any]) -> bytes:
    """By the extension's text: little-endian, a text behind the number of its bytes."""
    if datatype == "BYTES":
        texts = [value.encode() if isinstance(value, str) else value for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(values)}{'q' if datatype == 'INT64' else 'f'}", *values)


def body_of(tensors: Sequence[dict[str, Any]], **more: object) -> tuple[bytes, str]:
    """Tensors with `data`, or `binary` in its place -> a body and the size of its JSON."""
    inputs, behind = [], b""
    for tensor in tensors:
        told = {name: value for name, value in tensor.items() if name != "binary"}
        if "binary" in tensor:
            told["parameters"] = {"binary_data_size": len(tensor["binary"])}
            behind += tensor["binary"]
        inputs.append(told)
    head = msgspec.json.encode({"inputs": inputs, **more})
    return head + behind, str(len(head))


def read(sent: Given, spec: Spec) -> Tensor:
    fit(sent, spec)
    return take(sent, spec)


@st.composite
def sent_tensors(draw: st.DrawFn) -> list[tuple[dict[str, Any], Spec, list[Any]]]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        datatype = draw(st.sampled_from(Datatype))
        shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=2))
        num_values = int(np.prod(shape))
        values = draw(st.lists(VALUES[datatype], min_size=num_values, max_size=num_values))
        tensor: dict[str, Any] = {"name": f"t{number}", "datatype": datatype.value, "shape": shape}
        way = draw(st.sampled_from(WAYS))
        if way == "binary":
            tensor["binary"] = binary_of(datatype.value, values)
        elif way == "nested" and len(shape) == 2:
            tensor["data"] = [values[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
        else:
            tensor["data"] = values
        dims = tuple(draw(st.sampled_from([size, "X"])) for size in shape)
        found.append((tensor, Spec(name=f"t{number}", datatype=datatype, dims=dims), values))
    return found


@given(sent_tensors())
@settings(deadline=None, max_examples=200)
def test_tensors_are_read_as_they_were_sent_flat_nested_or_binary(
    sent: list[tuple[dict[str, Any], Spec, list[Any]]],
) -> None:
    body, size = body_of([tensor for tensor, _, _ in sent], id="a")
    asked = parse(body, size)
    assert asked.id == "a"
    for one, (tensor, spec, values) in zip(asked.inputs, sent, strict=True):
        found = read(one, spec)
        assert found.shape == tuple(tensor["shape"])
        read_back = found.values.tolist() if isinstance(found.values, np.ndarray) else found.values
        assert read_back == values
        assert [type(value) for value in read_back] == [type(value) for value in values]


@given(
    st.lists(
        st.tuples(arrays.arrays(np.float32, arrays.array_shapes(max_dims=2), elements=FP32), st.booleans()), max_size=4
    ),
    st.none() | st.text(st.characters(codec="utf-8"), max_size=9),
)
@settings(deadline=None)
def test_a_response_holds_the_same_float32_as_json_or_binary(
    outputs: list[tuple[np.ndarray, bool]], request_id: str | None
) -> None:
    asked = parse(msgspec.json.encode({"inputs": [], "id": request_id}), None)
    named = [Output(name=f"o{at}", array=array, binary=binary) for at, (array, binary) in enumerate(outputs)]
    body, size = write("users", "3", asked, named)
    assert (size is not None) == any(binary for _, binary in outputs)
    answer = msgspec.json.decode(body[:size])
    assert (answer["model_name"], answer["model_version"], answer.get("id")) == ("users", "3", request_id)
    at = len(body) if size is None else size
    for told, output in zip(answer["outputs"], named, strict=True):
        assert (told["name"], told["datatype"], told["shape"]) == (output.name, "FP32", list(output.array.shape))
        if output.binary:
            end = at + told["parameters"]["binary_data_size"]
            values, at = np.frombuffer(body[at:end], dtype="<f4"), end
        else:
            values = np.array(told["data"], dtype=np.float32)
        np.testing.assert_array_equal(values, output.array.ravel())
    assert at == len(body)


@given(st.binary(max_size=200), st.none() | st.text(max_size=20) | st.integers(0, 220).map(str))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_read_or_refused_in_one_line(body: bytes, size: str | None) -> None:
    refused = None
    try:
        parse(body, size)
    except RequestError as error:
        refused = error
    assert refused is None or (refused.status in (400, 422) and len(str(refused).splitlines()) == 1)


def one(datatype: str = "INT64", shape: Sequence[int] = (2,), **data: object) -> list[dict[str, Any]]:
    return [{"name": "x", "datatype": datatype, "shape": list(shape), **data}]


INT, TEXT, NUMBERS = (Spec(name="x", datatype=datatype, dims=("X",)) for datatype in Datatype)
SQUARE = Spec(name="x", datatype=Datatype.INT64, dims=("X", "Y"))
REFUSED = {
    "too few values": (one(data=[1]), INT, 422, "input 'x' has 1 values, its shape [2] 2"),
    "too many values": (one(data=[1, 2, 3]), INT, 422, "input 'x' has 3 values, its shape [2] 2"),
    "another datatype": (one("INT32", data=[1, 2]), INT, 422, "input 'x' is INT64, not 'INT32'"),
    "more dimensions": (one(shape=(1, 2), data=[1, 2]), INT, 422, "has a shape of 2 dimensions, not [-1]"),
    "a huge dimension": (one(shape=(1 << 31,), data=[1]), INT, 422, "Expected `int` <= 2147483647 - at `$.inputs[0]"),
    "a negative dimension": (one(shape=(-1,), data=[1]), INT, 422, "Expected `int` >= 0 - at `$.inputs[0].shape[0]`"),
    "huge dimensions": (one(shape=((1 << 31) - 1,) * 2, data=[1]), SQUARE, 422, "has 1 values, its shape"),
    "a fraction": (one(data=[1, 2.5]), INT, 422, "input 'x': Expected `int | array`, got `float` - at `data[1]`"),
    "a bool": (one(data=[1, True]), INT, 422, "got `bool` - at `data[1]`"),
    "a text for a number": (one(data=[1, "2"]), INT, 422, "got `str` - at `data[1]`"),
    "an integer beyond 64 bits": (one(data=[1, 1 << 63]), INT, 422, "<= 9223372036854775807 - at `data[1]`"),
    "a number beyond the largest": (one("FP32", data=[1, 1e31]), NUMBERS, 422, "<= 1e+30"),
    "a long text": (one("BYTES", data=["a", "b" * 257]), TEXT, 422, "Expected `str` of length <= 256"),
    "data that are no list": (one(data=5), INT, 422, "input 'x': Expected `array`, got `int`"),
    "nested and flat": (one(shape=(1, 2), data=[[1], 2]), SQUARE, 422, "nested data that do not have its shape [1, 2]"),
    "ragged": (one(shape=(2, 2), data=[[1, 2, 3], [4]]), SQUARE, 422, "nested data that do not have its shape [2, 2]"),
    "nested for one dimension": (one(data=[[1, 2]]), INT, 422, "nested data that do not have its shape [2]"),
    "nested thrice": (one(shape=(1, 1), data=[[[1]]]), SQUARE, 422, "nested data that do not have its shape [1, 1]"),
    "nested where it may not": (one(shape=(2, 1), data=[[[1]]]), SQUARE, 422, "got `array` - at `data[0][0]`"),
    "empty lists": (one(shape=(2,), data=[[]] * 9), INT, 422, "nested data that do not have its shape [2]"),
    "neither data nor binary": (one(), INT, 422, "input 'x' needs either `data` or the parameter `binary_data_size`"),
    "both": (one(data=[1, 2], binary=b"\0" * 16), INT, 422, "needs either `data` or the parameter"),
    "too few bytes": (one(binary=b"\0" * 8), INT, 422, "has 8 bytes of binary data: 2 INT64 need 16"),
    "too many bytes": (one(binary=b"\0" * 17), INT, 422, "has 17 bytes of binary data: 2 INT64 need 16"),
    "binary nan": (one("FP32", binary=struct.pack("<2f", 1, float("nan"))), NUMBERS, 422, "that is not finite"),
    "binary infinity": (one("FP32", binary=struct.pack("<2f", 1, float("-inf"))), NUMBERS, 422, "that is not finite"),
    "binary beyond the largest": (one("FP32", binary=struct.pack("<2f", 1, 2e30)), NUMBERS, 422, "beyond 1e+30"),
    "a text cut off": (one("BYTES", binary=b"\1\0\0\0a\2\0\0\0b"), TEXT, 422, "binary element 1 is cut off"),
    "a length cut off": (one("BYTES", binary=b"\1\0\0\0a\2\0"), TEXT, 422, "binary element 1 is cut off"),
    "a huge length": (one("BYTES", binary=b"\xff\xff\xff\xff"), TEXT, 422, "binary element 0 is cut off"),
    "too few texts": (one("BYTES", binary=b"\1\0\0\0a"), TEXT, 422, "has 1 binary elements, its shape 2"),
    "too many texts": (one("BYTES", binary=b"\0\0\0\0" * 3), TEXT, 422, "more binary elements than the 2 of its shape"),
    "no utf-8": (one("BYTES", binary=b"\1\0\0\0\xff\0\0\0\0"), TEXT, 422, "holds an element that is not UTF-8"),
    "a long binary text": (
        one("BYTES", shape=(1,), binary=binary_of("BYTES", ["ö" * 257])), TEXT, 422, "of more than 256 characters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_tensor_that_is_not_what_it_says_is_refused(name: str) -> None:
    tensors, spec, status, text = REFUSED[name]
    body, size = body_of(tensors)
    with pytest.raises(RequestError) as refused:
        read(parse(body, size).inputs[0], spec)
    assert refused.value.status == status
    assert text in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


GOOD, SIZE = body_of(one(binary=b"\0" * 16))
BODIES = {
    "cut off": (GOOD[:-1], SIZE, 400, "has 16 bytes of binary data, of which 15 are behind the JSON"),
    "bytes left": (GOOD + b"x", SIZE, 400, "1 bytes at the end of the body are of no input"),
    "no header": (GOOD, None, 400, "the body is not JSON"),
    "a header that is no number": (GOOD, "-1", 400, "inference-header-content-length '-1' is no size within"),
    "a header of other digits": (GOOD, "\u0662", 400, "is no size within"),
    "a huge header": (GOOD, "9" * 30, 400, "inference-header-content-length '99999999999999999999' is no size"),
    "a header beyond the body": (GOOD, str(len(GOOD) + 1), 400, f"is no size within the {len(GOOD)} bytes"),
    "a header within the JSON": (GOOD, "5", 400, "the body is not JSON"),
    "a negative size": (
        b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [0], "parameters": {"binary_data_size": -1}}]}',
        None, 422, ">= 0 - at `$.inputs[0].parameters.binary_data_size`",
    ),
    "a null size": (
        b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [0], "parameters": {"binary_data_size": null}}]}',
        None, 422, "got `null`",
    ),
    "an unknown parameter": (b'{"inputs": [], "parameters": {"sequence_id": 1}}', None, 422, "field `sequence_id`"),
    "an unknown field": (b'{"inputs": [], "x\\ny": 1}', None, 422, "field `x y`"),
    "a long unknown field": (b'{"inputs": [], "' + b"x" * 9_000 + b'": 1}', None, 422, "xxx"),
    "no inputs": (b"{}", None, 422, "missing required field `inputs`"),
    "an output twice": (b'{"inputs": [], "outputs": [{"name": "a"}, {"name": "a"}]}', None, 422, "asked for twice"),
    "a number as id": (b'{"inputs": [], "id": 7}', None, 422, "Expected `str | null`, got `int` - at `$.id`"),
    "no utf-8": (b'{"\xff": 1}', None, 400, "not JSON in UTF-8"),
    "deep": (b'{"inputs": [{"data": ' + b"[" * 9_000, None, 400, "not JSON in UTF-8"),
    "empty": (b"", None, 400, "not JSON in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_does_not_hold_together_is_refused(name: str) -> None:
    body, size, status, text = BODIES[name]
    with pytest.raises(RequestError) as refused:
        parse(body, size)
    assert refused.value.status == status
    assert text in str(refused.value)
    assert len(str(refused.value)) < 300
    assert len(str(refused.value).splitlines()) == 1


def test_texts_may_hold_what_json_is_made_of() -> None:
    texts = ["[[", '"[', "\\", ']\\"[']
    for shape, data in (([4], texts), ([2, 2], [texts[:2], texts[2:]])):
        spec = Spec(name="x", datatype=Datatype.BYTES, dims=tuple(shape))
        body, _ = body_of(one("BYTES", shape, data=data))
        assert read(parse(body, None).inputs[0], spec).values == texts


def test_an_output_is_binary_as_it_says_itself_else_as_the_request_says() -> None:
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]
    body, _ = body_of([], outputs=outputs, parameters={"binary_data_output": True})
    assert parse(body, None).outputs == {"a": True, "b": False}
    assert parse(b'{"inputs": []}', None).outputs == {}
