"""Certificates on disk: one .npz file with a JSON header and plain arrays. No pickle on either side.

A file from outside may hold anything. Reading it gives a certificate whose every part has the right form and is what
was written, or a ValueError; whether the certificate is true, only its `verify` can say.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from tokenprune.repmax.distances import DistanceOrMatrix
from tokenprune.repmax.proof import Record, Step
from tokenprune.strict_json import Check, check_fields, is_count, is_number, is_text, parse_json

if TYPE_CHECKING:
    from tokenprune.repmax.certificate import Certificate

_FORMAT = "tokenprune-certificate-2"
_OLD_FORMAT = "tokenprune-certificate-1"
_SCALARS = ("value", "upper_bound", "random_value", "n", "distance", "effort", "seconds", "with_quality")
_LARGEST = 2**32
"""Bytes of all arrays, unpacked; the tree of an hour's search has a hundredth of it."""
_ROWS = {"parent": np.int64, "point": np.int64, "taken": np.bool_, "steps": np.int64}
_RAGGED = {"z": np.float64, "shift": np.float64, "ones": np.int64, "zeros": np.int64}
_TREE = {*_ROWS, "shifted", *(f"tree_{name}{end}" for name in _RAGGED for end in ("", "_size"))}


def save_certificate(certificate: "Certificate", path: str | PathLike[str]) -> None:
    """Write the certificate; floats keep all their digits."""
    header = {"format": _FORMAT, "digest": certificate.digest or content_digest(certificate)}
    header |= {name: getattr(certificate, name) for name in _SCALARS}
    with open(path, "wb") as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **_arrays(certificate))


def content_digest(certificate: "Certificate") -> str:
    """Give the SHA-256 of everything that a certificate states, its own `digest` left out.

    It finds changes that were not meant. It is no signature: who forges a certificate can make a digest for it, too.
    """
    scalars = {name: getattr(certificate, name) for name in _SCALARS}
    digest = hashlib.sha256(json.dumps(scalars, sort_keys=True).encode())
    for name, array in sorted(_arrays(certificate).items()):
        plain = np.asarray(array)
        kind = plain.dtype.newbyteorder("<")  # the same on every machine
        digest.update(f"\n{name} {kind.str} {plain.shape}\n".encode() + plain.astype(kind).tobytes())
    return digest.hexdigest()


def load_certificate(path: str | PathLike[str]) -> "Certificate":
    """Read a certificate.

    Raises:
        ValueError: when the file is no certificate of this format, is cut or damaged, or was changed after it was
            written; the message names it.
        OSError: when the file is not there or must not be read.
    """
    data = Path(path).read_bytes()
    try:
        return _build(_read_arrays(data))
    # Damaged archives fail in many ways: BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, MemoryError.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"load_certificate: {path} is no certificate of the format {_FORMAT}, or it is damaged: {reason}; "
            "make it again with certify"
        ) from error


def _arrays(certificate: "Certificate") -> dict[str, Any]:
    arrays: dict[str, Any] = {"indices": certificate.indices}
    for name in ("z", "u"):
        if getattr(certificate, name) is not None:
            arrays[name] = getattr(certificate, name)
    return arrays | (_flatten(certificate.tree) if certificate.tree else {})


def _read_arrays(data: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        size = sum(member.file_size for member in archive.infolist())
    if len(names) != len(set(names)):
        raise ValueError("an array occurs twice")
    if size > _LARGEST:
        raise ValueError(f"its arrays have {size} bytes, more than {_LARGEST}")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _build(arrays: dict[str, Any]) -> "Certificate":
    from tokenprune.repmax.certificate import Certificate, Effort

    header = _header(arrays, get_args(Effort))
    digest, n = header.pop("digest"), header["n"]
    unknown = sorted(set(arrays) - {"header", "indices", "z", "u"} - _TREE)
    if unknown:
        raise ValueError(f"it holds an unknown array {unknown[0]!r}")
    indices = _array(arrays, "indices", np.int64)
    if indices.size and (indices[0] < 0 or indices[-1] >= n or (np.diff(indices) <= 0).any()):
        raise ValueError(f"indices must ascend within 0..{n - 1}")
    points: dict[str, Any] = {
        name: _array(arrays, name, np.float64, size=n) if name in arrays else None for name in ("z", "u")
    }
    tree = _restore(arrays) if _TREE & set(arrays) else ()
    certificate = Certificate(indices=indices, **points, tree=tree, digest=digest, **header)
    if content_digest(certificate) != digest:
        raise ValueError("something in it was changed after it was written")
    return certificate


def _header(arrays: dict[str, Any], efforts: tuple[str, ...]) -> dict[str, Any]:
    text = arrays.get("header")
    if text is None or text.dtype.kind != "U" or text.ndim != 0:
        raise ValueError("it has no header")
    header = parse_json(str(text))
    found = header.pop("format", None) if isinstance(header, dict) else None
    if found == _OLD_FORMAT:
        raise ValueError(f"it has the older format {_OLD_FORMAT}, in which changes cannot be found")
    if found != _FORMAT:
        raise ValueError("its header names no known format")
    checks: dict[str, Check] = dict.fromkeys(("value", "upper_bound", "random_value"), is_number)
    checks |= {"n": is_count, "seconds": lambda value: is_number(value) and value >= 0, "digest": is_text}
    checks |= {"distance": get_args(DistanceOrMatrix).__contains__, "effort": efforts.__contains__}
    check_fields(header, {**checks, "with_quality": lambda value: isinstance(value, bool)}, where="header")
    if set(header) != {*_SCALARS, "digest"}:
        raise ValueError(f"its header holds an unknown field {sorted(set(header) - {*_SCALARS, 'digest'})[0]!r}")
    return header


def _array(arrays: dict[str, Any], name: str, dtype: type, *, size: int | None = None) -> Any:  # noqa: ANN401
    """One-dimensional array of a given kind, and where `size` is given of that length; finite."""
    array = arrays[name]
    if array.dtype != np.dtype(dtype) or array.ndim != 1 or (size is not None and array.size != size):
        wanted = f"{np.dtype(dtype)} ({'n' if size is None else size},)"
        raise ValueError(f"{name} must be {wanted}, not {array.dtype} {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array


def _flatten(tree: tuple[Record, ...]) -> dict[str, Any]:
    steps = [step for record in tree for step in record.steps]
    result: dict[str, Any] = {
        "parent": np.array([record.parent for record in tree], dtype=np.int64),
        "point": np.array([record.point for record in tree], dtype=np.int64),
        "taken": np.array([record.taken for record in tree], dtype=np.bool_),
        "steps": np.array([len(record.steps) for record in tree], dtype=np.int64),
        "shifted": np.array([step.shift is not None for step in steps], dtype=np.bool_),
    }
    result |= _ragged("z", (step.z for step in steps), np.float64)
    result |= _ragged("shift", (step.shift for step in steps if step.shift is not None), np.float64)
    result |= _ragged("ones", (step.ones for step in steps), np.int64)
    result |= _ragged("zeros", (step.zeros for step in steps), np.int64)
    return result


def _ragged(name: str, parts: Iterable[Any], dtype: type) -> dict[str, Any]:
    arrays = list(parts)
    data: Any = np.concatenate([np.empty(0, dtype=dtype), *arrays]).astype(dtype)
    return {f"tree_{name}": data, f"tree_{name}_size": np.array([a.size for a in arrays], dtype=np.int64)}


def _restore(arrays: dict[str, Any]) -> tuple[Record, ...]:
    missing = sorted(_TREE - set(arrays))
    if missing:
        raise ValueError(f"the array {missing[0]!r} of its search tree is missing")
    records = len(arrays["parent"])
    parent, point, taken, counts = (_array(arrays, name, dtype, size=records) for name, dtype in _ROWS.items())
    shifted = _array(arrays, "shifted", np.bool_)
    if (counts < 0).any() or (counts > shifted.size).any() or counts.sum() != shifted.size:
        raise ValueError("steps does not say how many there are")
    steps = _steps(arrays, shifted)
    return tuple(
        Record(above, place, bool(side), [next(steps) for _ in range(count)])
        for above, place, side, count in zip(
            parent.tolist(), point.tolist(), taken.tolist(), counts.tolist(), strict=True
        )
    )


def _steps(arrays: dict[str, Any], shifted: Any) -> Iterator[Step]:  # noqa: ANN401
    shifts = iter(_parts(arrays, "shift", int(shifted.sum())))
    z, ones, zeros = (_parts(arrays, name, shifted.size) for name in ("z", "ones", "zeros"))
    return iter(
        [
            Step(z=z[i], shift=next(shifts) if has_shift else None, ones=ones[i], zeros=zeros[i])
            for i, has_shift in enumerate(shifted.tolist())
        ]
    )


def _parts(arrays: dict[str, Any], name: str, count: int) -> list[Any]:
    """The pieces of one flat array, by their sizes."""
    flat = _array(arrays, f"tree_{name}", _RAGGED[name])
    sizes = _array(arrays, f"tree_{name}_size", np.int64, size=count)
    if (sizes < 0).any() or (sizes > flat.size).any() or sizes.sum() != flat.size:
        raise ValueError(f"tree_{name}_size does not fit tree_{name}")
    return np.split(flat, np.cumsum(sizes))[:-1]
