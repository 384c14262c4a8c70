"""Certificates on disk: one .npz file with a JSON header and plain arrays. No pickle on either side."""

import json
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenprune.repmax.proof import Record, Step

if TYPE_CHECKING:
    from tokenprune.repmax.certificate import Certificate

_FORMAT = "tokenprune-certificate-1"
_SCALARS = ("value", "upper_bound", "random_value", "n", "distance", "effort", "seconds", "with_quality")


def save_certificate(certificate: "Certificate", path: str | PathLike[str]) -> None:
    """Write the certificate; floats keep all their digits."""
    header = {"format": _FORMAT} | {name: getattr(certificate, name) for name in _SCALARS}
    arrays: dict[str, Any] = {"header": np.array(json.dumps(header)), "indices": certificate.indices}
    for name in ("z", "u"):
        if getattr(certificate, name) is not None:
            arrays[name] = getattr(certificate, name)
    if certificate.tree:
        arrays |= _flatten(certificate.tree)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_certificate(path: str | PathLike[str]) -> "Certificate":
    """Read a certificate.

    Raises:
        ValueError: when the file is no certificate of this format.
    """
    from tokenprune.repmax.certificate import Certificate

    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays["header"])) if "header" in arrays else {}
    if header.pop("format", None) != _FORMAT:
        raise ValueError(f"load_certificate: {path} is no certificate of the format {_FORMAT}")
    tree = _restore(arrays) if "parent" in arrays else ()
    return Certificate(indices=arrays["indices"], z=arrays.get("z"), u=arrays.get("u"), tree=tree, **header)


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


def _parts(arrays: dict[str, Any], name: str) -> list[Any]:
    return np.split(arrays[f"tree_{name}"], np.cumsum(arrays[f"tree_{name}_size"]))[:-1]


def _restore(arrays: dict[str, Any]) -> tuple[Record, ...]:
    shifts = iter(_parts(arrays, "shift"))
    steps = iter(
        [
            Step(z=z, shift=next(shifts) if shifted else None, ones=ones, zeros=zeros)
            for z, shifted, ones, zeros in zip(
                _parts(arrays, "z"), arrays["shifted"], _parts(arrays, "ones"), _parts(arrays, "zeros"), strict=True
            )
        ]
    )
    rows = zip(*(arrays[name].tolist() for name in ("parent", "point", "taken", "steps")), strict=True)
    return tuple(
        Record(parent, point, taken, [next(steps) for _ in range(size)]) for parent, point, taken, size in rows
    )
