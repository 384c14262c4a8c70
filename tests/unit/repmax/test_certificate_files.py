"""Certificate files that were cut, damaged or changed: a ValueError that names the file, or a false certificate."""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenprune.repmax import Certificate, certify, greedy_repmax, token_cloud

CLOUD = token_cloud("isotropic", 14, 40, seed=1)
SET = greedy_repmax(CLOUD, 5)
EFFORTS = ("tangent", "convex", "shifted", "exact")


@cache
def written(effort: Any, distance: Any = "cosine") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        certify(CLOUD, SET, effort=effort, distance=distance).save(Path(folder) / "good.npz")
        return (Path(folder) / "good.npz").read_bytes()


def parts_of(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data)) as file:
        return {name: file[name] for name in file.files}


def packed(arrays: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def holds(data: bytes, folder: Path) -> bool:
    """Whether the file is read and its certificate verifies; an error must be a ValueError with the file's name."""
    file = folder / "tried.npz"
    file.write_bytes(data)
    try:
        certificate = Certificate.load(file)
    except ValueError as error:
        assert "tried.npz" in str(error)  # noqa: PT017
        return False
    return certificate.verify(CLOUD)


@pytest.mark.parametrize("effort", ["shifted", "exact"])
def test_cut_at_every_byte(effort: str, tmp_path: Path) -> None:
    data = written(effort)
    assert holds(data, tmp_path)
    step = 1 if effort == "shifted" else 7  # a proof tree makes the file long
    assert not any(holds(data[:size], tmp_path) for size in range(0, len(data), step))


@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_bytes_changed_states_nothing_else(places: list[tuple[float, int]], tmp_path: Path) -> None:
    data = bytearray(written("exact"))
    digest = json.loads(str(parts_of(bytes(data))["header"]))["digest"]
    for place, value in places:
        data[int(place * len(data))] = value
    if holds(bytes(data), tmp_path):  # a byte that nothing depends on, such as the archive's dates
        assert Certificate.load(tmp_path / "tried.npz").digest == digest


def other_values(value: object) -> list[object]:
    odd: list[object] = [None, True, [], {}, "x", "", -1, 10**20, 10**299, 1e300, 0, 0.5, [[[]]]]
    near = [value + 1, value * (1 + 1e-12)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
    return [other for other in [*odd, *near, *EFFORTS, "euclidean", False] if repr(other) != repr(value)]


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_field_of_the_header_counts(effort: str, tmp_path: Path) -> None:
    arrays = parts_of(written(effort))
    header = json.loads(str(arrays["header"]))
    for name, value in header.items():
        for other in other_values(value):
            changed = {**arrays, "header": np.array(json.dumps({**header, name: other}))}
            assert not holds(packed(changed), tmp_path), (name, other)
        less = {key: entry for key, entry in header.items() if key != name}
        assert not holds(packed({**arrays, "header": np.array(json.dumps(less))}), tmp_path), name
    more = {**arrays, "header": np.array(json.dumps({**header, "surprise": 1}))}
    assert not holds(packed(more), tmp_path)


def bent(array: Any) -> list[Any]:
    """Other arrays in the place of one."""
    found = [np.zeros(0), np.array("x"), np.array(3), np.zeros((2, 2)), array[None], array.astype(complex)]
    found += [array.astype(np.float32), array.astype(np.int8), np.full(3, np.nan), np.array([2**62, 2**62, -1])]
    if array.size:
        moved = array.copy()
        moved[0] = moved[0] + 1 if array.dtype.kind != "b" else ~moved[0]
        found += [moved, array[1:], np.concatenate([array, array[:1]]), array[::-1]]
    return [other for other in found if other.dtype != array.dtype or not np.array_equal(other, array)]


@pytest.mark.parametrize("effort", ["shifted", "exact"])
def test_every_array_counts(effort: str, tmp_path: Path) -> None:
    arrays = parts_of(written(effort, "euclidean"))
    for name, array in arrays.items():
        for other in bent(array) if name != "header" else [np.array(3), np.array(["{}"]), np.array("")]:
            assert not holds(packed({**arrays, name: other}), tmp_path), (name, other)
        assert not holds(packed({key: part for key, part in arrays.items() if key != name}), tmp_path), name
    assert not holds(packed({**arrays, "surprise": np.zeros(2)}), tmp_path)
    for name in ("z", "u"):
        if name not in arrays:
            assert not holds(packed({**arrays, name: np.zeros(14)}), tmp_path), name


HEADERS: dict[str, Callable[[str], str]] = {
    "deep": lambda text: text[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "long number": lambda text: text.replace('"n": 14', '"n": ' + "9" * 5000),
    "infinite": lambda text: text.replace('"n": 14', '"n": 1e999'),
    "NaN": lambda text: text.replace('"n": 14', '"n": NaN'),
    "name twice": lambda text: text.replace('"n": 14', '"n": 14, "n": 14'),
    "list": lambda text: f"[{text}]",
    "number": lambda _: "3",
    "no JSON": lambda text: text[:-1],
    "surrogate": lambda text: text.replace('"cosine"', '"\\ud800"'),
    "old format": lambda text: text.replace("certificate-2", "certificate-1"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_odd_headers(kind: str, tmp_path: Path) -> None:
    arrays = parts_of(written("convex"))
    text = HEADERS[kind](str(arrays["header"]))
    assert text != str(arrays["header"])
    assert not holds(packed({**arrays, "header": np.array(text)}), tmp_path)


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    good = written("convex")
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    twice = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(twice, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with pytest.warns(UserWarning, match="Duplicate name"):
            new.writestr("indices.npy", old.read("indices.npy"))
    pickled = io.BytesIO()
    np.savez(pickled, header=np.array([{}], dtype=object))
    for data in (b"", b"\0" * 100, stream.getvalue(), twice.getvalue(), pickled.getvalue(), b"PK\x05\x06" + bytes(18)):
        assert not holds(data, tmp_path)
    with pytest.raises(FileNotFoundError):
        Certificate.load(tmp_path / "nowhere.npz")


def test_an_array_that_claims_more_than_it_has(tmp_path: Path) -> None:
    good = written("convex")
    for shape in ("(14,)", "(99999999999999,)"):
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(stream, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "z.npy":
                    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
                    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content[128:]
                new.writestr(name, content)
        assert holds(stream.getvalue(), tmp_path) == (shape == "(14,)")


@pytest.mark.parametrize("effort", EFFORTS)
def test_in_memory_every_field_counts_too(effort: Any) -> None:
    certificate = certify(CLOUD, SET, effort=effort)
    assert certificate.verify(CLOUD)
    for field in fields(certificate):
        value = getattr(certificate, field.name)
        others = [value[:-1]] if isinstance(value, (tuple, np.ndarray)) and len(value) else []
        for other in [*others, *other_values(value), 10**400, float("nan"), object(), (3,)]:
            if field.name == "digest" and other == "":
                continue  # made by hand
            change: dict[str, Any] = {field.name: other}
            assert not replace(certificate, **change).verify(CLOUD), change


@pytest.mark.parametrize("effort", EFFORTS)
def test_without_a_digest_evidence_and_effort_must_fit(effort: Any) -> None:
    certificate = replace(certify(CLOUD, SET, effort=effort), digest="")
    assert certificate.verify(CLOUD)
    wrong: list[dict[str, Any]] = [
        {"effort": "exact" if effort != "exact" else "convex"},
        {"seconds": -1.0},
        {"seconds": float("nan")},
    ]
    if effort in ("convex", "shifted"):
        wrong += [{"effort": "tangent"}, {"tree": certify(CLOUD, SET, effort="exact").tree}]
    for change in wrong:
        assert not replace(certificate, **change).verify(CLOUD), change


def test_what_was_saved_is_what_was_made(tmp_path: Path) -> None:
    for effort in EFFORTS:
        certificate = certify(CLOUD, SET, effort=effort)  # type: ignore[arg-type]
        certificate.save(tmp_path / "a.npz")
        loaded = Certificate.load(tmp_path / "a.npz")
        assert loaded.digest == certificate.digest != ""
        replace(certificate, digest="").save(tmp_path / "b.npz")
        assert Certificate.load(tmp_path / "b.npz").digest == certificate.digest
