import hashlib
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.errors import CorruptEntryError, InvalidArgumentError, UnsupportedFormatError
from lmstash.identity.encoding import decode, encode, from_json, snapshot, to_json
from lmstash.identity.keys import ABSENT, Difference, Key, KeyFamily

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text(st.characters())
hashable = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(hashable, inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.text(st.characters(), min_size=1)
keyable = st.dictionaries(names, values, max_size=6)


@given(values, values)
def test_two_values_share_an_encoding_only_when_they_share_types_and_content(left, right):
    assert (encode(left) == encode(right)) == (repr_of(left) == repr_of(right))


def repr_of(value):
    """A second, independent canonical form: reprs tell types apart, dict items are sorted."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{repr_of(key)}:{repr_of(each)}" for key, each in value.items())) + "}"
    if isinstance(value, list | tuple):
        return type(value).__name__ + "(" + ",".join(map(repr_of, value)) + ")"
    return ascii(value)


containers = values.filter(lambda value: type(value) in (list, tuple, dict))


@given(containers, containers)
def test_two_containers_share_a_snapshot_only_when_they_share_types_and_content(left, right):
    ours, theirs = snapshot(left), snapshot(right)
    assert ours is None or ours != theirs or repr_of(left) == repr_of(right)
    assert snapshot(decode(encode(left))) == snapshot(decode(encode(left)))  # other objects


@pytest.mark.parametrize("one", [1, 0.0, "a", b"a", None, 2**70])
def test_a_snapshot_tells_plain_values_apart_and_takes_no_others(one):
    others = (1.0, True, -0.0, "b", b"a", bytearray(b"a"), {}, {"a": 1}, object(), [one, one], (one,), 2**70 + 1)
    for each in others:
        if type(each) is not type(one) or repr(each) != repr(one):
            assert snapshot([one]) not in (None, snapshot([each]), snapshot([[each]]))
    for each in (bytearray(b"a"), {}, object(), int.__call__, type("Own", (int,), {})(1)):
        for held in ([each], (0, [each]), {"a": each}, {"a": [(each,)]}):
            assert snapshot(held) is None
    assert snapshot([sys.intern("".join(["a", "b"]))]) == snapshot(["".join(["a", "b"])])
    circle = [1]
    circle.append(circle)
    assert snapshot(circle) is None


@given(values)
def test_encodings_and_descriptions_round_trip(value):
    data = encode(value)
    assert encode(decode(data)) == data
    assert encode(from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))) == data


@given(keyable)
def test_a_key_made_from_its_own_description_is_equal(components):
    key = Key(components)
    again = Key.from_description(json.loads(json.dumps(key.describe(), allow_nan=False)))
    assert again == key
    assert again.digest == key.digest
    assert again.explain(key) == []


@given(keyable, st.data())
def test_changing_one_component_changes_the_digest_and_is_the_one_explained(components, data):
    components = {**components, "always": 1}
    name = data.draw(st.sampled_from(sorted(components)))
    value = data.draw(values.filter(lambda value: encode(value) != encode(components[name])))
    ours, theirs = Key(components), Key({**components, name: value})
    assert ours.digest != theirs.digest
    assert [each.name for each in ours.explain(theirs)] == [name]


@given(keyable, names)
def test_leaving_a_component_out_is_not_the_same_as_none(components, name):
    components.pop(name, None)
    without, with_none = Key(components), Key({**components, name: None})
    assert without.digest != with_none.digest
    assert without.explain(with_none) == [Difference(name, ABSENT, None)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (True, 1),
        (False, 0),
        (1, 1.0),
        (0.0, -0.0),
        ("1", 1),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ((), []),
        ((), {}),
        ({1: "x"}, {"1": "x"}),
        ({True: "x"}, {1: "x"}),
        (("ab", "c"), ("a", "bc")),
        (((1,), 2), ((1, 2),)),
        (None, "None"),
        (None, False),
        (2**64, 0),
        (255, -1),
    ],
)
def test_values_that_python_may_take_for_equal_are_different_keys(left, right):
    assert Key({"x": left}).digest != Key({"x": right}).digest


def test_a_name_and_a_value_cannot_be_shifted_into_each_other():
    assert Key({"ab": "c"}).digest != Key({"a": "bc"}).digest
    assert Key({"a": "x", "b": "y"}).digest != Key({"a": "y", "b": "x"}).digest


def test_order_of_components_and_of_dict_items_does_not_count():
    assert Key({"a": 1, "b": {"x": 1, "y": 2}}) == Key({"b": {"y": 2, "x": 1}, "a": 1})


def test_every_nan_is_one_nan():
    negative = float.fromhex("-0x1p0") * math.nan
    assert Key({"x": math.nan}) == Key({"x": negative}) == Key({"x": float("nan")})


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, bytearray(b"x"), range(3), type("S", (str,), {})("x")])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(InvalidArgumentError, match="cannot hold"):
        Key({"x": [value]})


def test_a_list_that_holds_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(InvalidArgumentError, match="nests too deep"):
        Key({"x": loop})


@pytest.mark.parametrize("name", ["", 1, None, b"x"])
def test_a_component_without_a_proper_name_is_refused(name):
    with pytest.raises(InvalidArgumentError, match="needs a name"):
        Key({name: 1})


def test_a_key_does_not_change_with_what_it_was_made_from_or_what_it_gave_away():
    inner = [1]
    components = {"x": inner}
    key = Key(components)
    digest = key.digest
    inner.append(2)
    components["y"] = 3
    key.components["x"].append(4)
    assert key.digest == digest
    assert key.components == {"x": [1]}


@pytest.mark.parametrize(
    "description",
    [
        {"schema": 1},
        {"schema": 1, "components": None},
        {"schema": 1, "components": [1]},
        {"schema": 1, "components": {"x": {"$float": "wat"}}},
        {"schema": 1, "components": {"x": {"$bytes": "zz"}}},
        {"schema": 1, "components": {"x": {"$dict": [[1]]}}},
        {"schema": 1, "components": {"x": {"$dict": [[[1], 2]]}}},
        {"schema": 1, "components": {"x": {"$what": 1}}},
        {"schema": 1, "components": {"x": 1.5}},
        {"schema": 1, "components": {"": 1}},
        [],
    ],
)
def test_a_damaged_description_says_so(description):
    with pytest.raises(CorruptEntryError):
        Key.from_description(description)


def test_a_description_by_a_later_schema_asks_for_an_upgrade():
    with pytest.raises(UnsupportedFormatError, match="Upgrade"):
        Key.from_description({"schema": 2, "components": {}})


@given(st.dictionaries(names, values, min_size=1, max_size=6), st.data())
def test_a_family_gives_the_digests_of_its_keys(components, data):
    varying = data.draw(st.permutations(sorted(components)))[: data.draw(st.integers(0, len(components)))]
    family = KeyFamily({name: value for name, value in components.items() if name not in varying}, varying)
    assert family.digest(*[components[name] for name in varying]) == Key(components).digest
    changed = {**components, **dict.fromkeys(varying, b"other")}
    assert family.digest(*[b"other"] * len(varying)) == Key(changed).digest
    if len(varying) == 1:
        assert family.digest_of_bytes()(b"other") == Key(changed).digest


def test_a_family_refuses_names_given_twice_and_missing_values():
    with pytest.raises(InvalidArgumentError, match="twice"):
        KeyFamily({"a": 1}, ["a"])
    with pytest.raises(InvalidArgumentError, match="expected 2 values"):
        KeyFamily({"a": 1}, ["b", "c"]).digest(1)
    with pytest.raises(InvalidArgumentError, match="2 components vary"):
        KeyFamily({"a": 1}, ["b", "c"]).digest_of_bytes()


def test_the_schema_has_not_drifted():
    """These digests name entries on people's disks. If this fails, raise SCHEMA_VERSION; do not edit the digests."""
    key = Key(
        {
            "none": None,
            "flags": (True, False),
            "int": -(2**70),
            "float": [0.5, -0.0, math.inf, math.nan],
            "text": "naïve\ud800",
            "bytes": b"\0\1",
            "nested": {1: "a", "1": [(), {}], None: {"deep": 2.0}},
        }
    )
    assert Key({}).hex == "e42e91d811c9202234fab7296a0e25b2c3442697a1b5c6c7c72c9f8db10bf0fc"
    assert key.hex == "1d35f7e42ed40a971a7be2aadf6e7b827e4f61622ed746767faefd560795bab9"


def test_the_digest_is_what_the_documentation_says():
    unit = b"s\0\0\0\0\0\0\0\1a" + b"\0\0\0\0\0\0\0\x0a" + b"i\0\0\0\0\0\0\0\1\5"
    expected = hashlib.sha256(b"lmstash key\0\0\0\0\1" + b"\0\0\0\0\0\0\0\1" + unit).hexdigest()
    assert Key({"a": 5}).hex == expected
