"""Holds Example bytes to the protobuf runtime, which knows the published schema."""

import hypothesis
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import strategies as st

from seg_jax.data import tf_example

NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=5)
TEXTS = st.lists(st.binary(max_size=300), max_size=4)
FEATURES = st.dictionaries(
    st.text(max_size=8),
    NUMBERS.map(lambda v: np.array(v, np.int64))
    | FLOATS.map(lambda v: np.array(v, np.float32))
    | TEXTS,
    max_size=5,
)


def schema():
    """Returns tf.train.Example, from the schema that TensorFlow publishes."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto
    lists = (
        ("BytesList", kind.TYPE_BYTES),
        ("FloatList", kind.TYPE_FLOAT),
        ("Int64List", kind.TYPE_INT64),
    )
    for name, each in lists:
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, type=each, label=kind.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(lists, start=1):
        feature.field.add(
            name=name.lower(), number=number, type=kind.TYPE_MESSAGE, type_name=f".t.{name}",
            label=kind.LABEL_OPTIONAL, oneof_index=0,
        )  # fmt: skip
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kind.TYPE_STRING, label=kind.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=kind.TYPE_MESSAGE, type_name=".t.Feature",
        label=kind.LABEL_OPTIONAL,
    )  # fmt: skip
    features.field.add(
        name="feature", number=1, type=kind.TYPE_MESSAGE, type_name=".t.Features.FeatureEntry",
        label=kind.LABEL_REPEATED,
    )  # fmt: skip
    whole = file.message_type.add(name="Example")
    whole.field.add(
        name="features", number=1, type=kind.TYPE_MESSAGE, type_name=".t.Features",
        label=kind.LABEL_OPTIONAL,
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = schema()


def plain(value):
    return value if isinstance(value, list) else value.tolist()


@hypothesis.given(FEATURES)
def test_protobuf_reads_what_is_written(features):
    read = EXAMPLE.FromString(tf_example.encode(features)).features.feature
    assert set(read) == set(features)
    for name, value in features.items():
        field = read[name].WhichOneof("kind")
        assert field == (
            "byteslist"
            if isinstance(value, list)
            else {"f": "floatlist", "i": "int64list"}[value.dtype.kind]
        )
        assert list(getattr(read[name], field).value) == plain(value)


@hypothesis.given(FEATURES)
def test_what_protobuf_writes_is_read(features):
    message = EXAMPLE()
    for name, value in features.items():
        feature = message.features.feature[name]
        lists = {"f": feature.floatlist, "i": feature.int64list}
        into = feature.byteslist if isinstance(value, list) else lists[value.dtype.kind]
        into.SetInParent()
        into.value.extend(plain(value))
    read = tf_example.decode(message.SerializeToString())
    assert {name: plain(value) for name, value in read.items()} == {
        name: plain(value) for name, value in features.items()
    }
    again = tf_example.decode(tf_example.encode(features))
    assert {name: type(value) for name, value in read.items()} == {
        name: type(value) for name, value in again.items()
    }


def test_one_value_has_one_text():
    features = {"b": [b"x"], "a": np.array([1], np.int64)}
    turned = dict(reversed(features.items()))
    assert tf_example.encode(features) == tf_example.encode(turned)


def test_integers_that_are_not_packed_are_read():
    # A list of 5 and 300, each with a tag of its own.
    numbers = b"\x08\x05\x08\xac\x02"
    feature = b"\x1a" + bytes([len(numbers)]) + numbers
    entry = b"\x0a\x01n\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    read = tf_example.decode(b"\x0a" + bytes([len(features)]) + features)
    assert read["n"].tolist() == [5, 300]


@hypothesis.given(FEATURES, st.data())
def test_other_bytes_are_told(features, data):
    text = tf_example.encode(features | {"a": [b"abc"]})
    cut = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(ValueError, match="expected the bytes of an Example"):
        tf_example.decode(text[:cut])


@hypothesis.given(st.binary(max_size=100))
def test_any_bytes_are_read_or_told(text):
    try:
        tf_example.decode(text)
    except ValueError as error:
        assert "expected the bytes of an Example" in str(error)  # noqa: PT017


@pytest.mark.parametrize("value", [np.zeros((2, 2), np.int64), np.zeros(3, np.int32)])
def test_other_arrays_are_told(value):
    with pytest.raises(ValueError, match="expected a list of float32 or int64"):
        tf_example.encode({"a": value})
