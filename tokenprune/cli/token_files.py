"""What `tokenprune optimality` reads and where it writes, checked before the first minute of solving is spent."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any


def read_tokens(path: Path) -> Iterator[tuple[str, Any]]:
    """Read the images in a .npy or .safetensors file; a three-dimensional array holds one image per entry.

    Raises:
        ValueError: names the file when it does not exist, is damaged, or holds something else.
    """
    from tokenprune.repmax.problem.distances import as_float64

    if not path.is_file():
        raise ValueError(f"the file {path} does not exist")
    if path.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"{path}: tokens must be a .npy or .safetensors file")
    try:
        arrays = _load(path)
    # Damaged files fail in many ways: EOFError, SafetensorError, MemoryError, SyntaxError.
    except Exception as error:
        raise ValueError(
            f"{path} is no {path.suffix} file, or it is damaged: {error or type(error).__name__}"
        ) from error
    if not arrays:
        raise ValueError(f"{path} holds no array")
    for name, array in arrays.items():
        if array.ndim in (2, 3):
            try:
                as_float64(array.reshape(-1, array.shape[-1]), owner="gap", name=name)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from None
        if array.ndim == 2:
            yield name, array
        elif array.ndim == 3:
            yield from ((f"{name}[{place}]", image) for place, image in enumerate(array))
        else:
            raise ValueError(f"{path}: {name} has shape {tuple(array.shape)}; tokens are (n, d) or (b, n, d)")


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    import numpy as np

    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("it holds several arrays")
    return {path.stem: array}


def check_files(paths: Sequence[Path], count: int, check: Callable[[int], object]) -> None:
    """Read all files that will be needed.

    Args:
        paths: token files.
        count: at most so many images are used.
        check: raises when an image of so many tokens does not fit.

    Raises:
        ValueError: when a file holds no tokens, two images have one name, or `check` raises.
    """
    seen: dict[str, Path] = {}
    found = ((path, name, image) for path in paths for name, image in read_tokens(path))
    for path, name, image in islice(found, count):
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {path} both hold an image called {name!r}, so that their rows could not be told "
                "apart; rename a file or an array"
            )
        seen[name] = path
        check(len(image))


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the output folder and lock it.

    Raises:
        ValueError: when it holds the run of another command, cannot be made, or another process writes into it.
    """
    from tokenprune.evaluate.lock import locked
    from tokenprune.evaluate.report.folder import MANIFEST, read_manifest

    if (out / MANIFEST).exists():
        try:
            kind = f"of {read_manifest(out)['kind']!r}"
        except ValueError:
            kind = "of which it cannot be said what it is (its manifest.json is damaged)"
        if kind not in ("of 'optimality'", "of 'gap'"):
            raise ValueError(f"--out {out} holds a run {kind}, whose report would be lost; choose another folder")
    with locked(out):
        yield
