"""Whether choices depend on the machine, before and after they were decided in float64, and what that costs.

`python -m benchmarks.reproducible` takes about a quarter of an hour, `--quick` two minutes; with `--costs` only the
second table is made. It unpacks the commit of `--before` from this repository, and one process for each of the two
versions and each setting chooses on command.
Writes into benchmarks/results/, with a .json of machine, versions and commits:
    reproducible_choices.csv  images on which a method in float32 keeps other tokens than in float64, by setting
    reproducible_cost.csv     processor time of a selection after over before; the two take turns, on one thread
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenprune import Tokens, parse

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEFORE = "adf438a"
SETTINGS: dict[str, dict[str, str]] = {
    "none": {},
    "MKL_CBWR=COMPATIBLE": {"MKL_CBWR": "COMPATIBLE"},
    "MKL_CBWR=AVX2": {"MKL_CBWR": "AVX2"},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATEN_CPU_CAPABILITY=avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}
# Without scores there is nothing to be decided; the last one is newer than the version before.
_LEFT_OUT = {"grid_pool", "random", "uniform", "vtw", "at_layer"}
_SIGNALS = ("cls_attention", "vision_states", "vision_cls", "vision_keys", "vision_last_keys", "vision_last_cls")
# Shapes of signals in which the versions differ: both get the same.
_SAME: dict[str, tuple[int | str, ...]] = {
    "clip_text": (2, 10),
    "decoder_states": ("n", "d"),
    "decoder_text_keys": (5, 8),
    "decoder_text_states": (5, "d"),
    "vision_keys": ("n", 8),
}
SIZES = ((576, 4096, 64, 1), (576, 1024, 64, 1), (256, 128, 64, 1), (576, 1024, 64, 4), (256, 128, 64, 16))
COSTS = [
    (method, n, d, k, batch)
    for method in ("greedy_repmax(keep={k})", "divprune(keep={k})")
    for n, d, k, batch in SIZES
] + [
    (method, 576, 4096, 64, 1)
    for method in (
        "trim_tokenator(keep={k})", "mi_alignment(keep={k})", "cdpruner(keep={k})", "vispruner(keep={k})",
        "fastervlm(keep={k})", "trim(keep={k})", "dart(keep={k})", "visionzip(keep={k})", "prumerge(keep={k})",
    )
]  # fmt: skip


# -- a process that chooses: it runs the code that PYTHONPATH names, and so uses nothing that only one version has


def worker() -> None:
    """Answer each line of JSON with one: what a strategy keeps, or how long it takes."""
    made: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "files" in order:
            answer: Any = [_kept(file, order["strategies"], order["dtype"]) for file in order["files"]]
        else:
            answer = _seconds(made, **order)
        print(json.dumps(answer), flush=True)


def _load(file: str, dtype: str) -> Tokens:
    with np.load(file) as fields:
        tensors = {name: torch.from_numpy(fields[name]) for name in fields.files if name != "grid"}
        grid = tuple(fields["grid"].tolist())
    as_float: dict[str, Any] = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value for name, value in tensors.items()
    }
    return Tokens(**as_float, grid=grid, key=0, project=torch.tanh, tile_grid=(1, 2))


def _kept(file: str, strategies: list[str], dtype: str) -> list[list[int]]:
    tokens = _load(file, dtype)
    return [sorted(parse(strategy).select(tokens).indices.tolist()) for strategy in strategies]


def _seconds(made: dict[str, Any], *, strategy: str, n: int, d: int, batch: int, repeats: int) -> float:
    name = f"{n} {d} {batch}"
    if name not in made:
        made.clear()
        made[name] = [Tokens(**draw(n, d, seed, "noise"), project=torch.tanh) for seed in range(batch)]
    chosen = parse(strategy)
    chosen.select_batch(made[name])
    start = time.process_time()
    for _ in range(repeats):
        chosen.select_batch(made[name])
    return (time.process_time() - start) / repeats


def draw(n: int, d: int, seed: int, kind: str) -> dict[str, Any]:
    """Random fields of one image; with "duplicates" a quarter of the tokens is different and the rest repeats them."""
    from tokenprune import strategies
    from tokenprune.testing import random_tokens

    strategies()  # loads all methods, which declare what they read
    rows = 16
    tokens = random_tokens(rows, n // rows, width=d, seed=seed)
    known = dict(vars(tokens))  # signals are in a mapping of their own, and were attributes in the version before
    known |= {str(signal): value for signal, value in known.pop("signals", {}).items() if str(signal).isidentifier()}
    fields = {name: value for name, value in known.items() if isinstance(value, torch.Tensor)}
    own = torch.Generator().manual_seed(seed + 1)
    for name, shape in _SAME.items():
        sizes = [{"n": n, "d": d}[size] if isinstance(size, str) else size for size in shape]
        fields[name] = torch.randn(sizes, generator=own)
    which = torch.randint(n // 4, (n,), generator=torch.Generator().manual_seed(seed))
    if kind == "duplicates":
        for name, value in fields.items():
            if name in ("tiles", "question") or n not in value.shape:
                continue
            fields[name] = (value[which] if value.shape[0] == n else value[:, which]).contiguous()
    return fields


# -- the benchmark


class Chooser:
    """One process with the code of a folder under a setting."""

    def __init__(self, folder: Path, setting: dict[str, str]) -> None:
        known = {name for each in SETTINGS.values() for name in each}
        environment = {name: value for name, value in os.environ.items() if name not in known}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), **setting}
        command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, cwd=folder)

    def ask(self, **order: Any) -> Any:  # noqa: ANN401
        """Send an order and wait for the answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("a choosing process ended early; its error is above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def unpack(commit: str, folder: Path) -> Path:
    """The package at a commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def write_images(folder: Path, count: int) -> dict[str, list[str]]:
    """A third of the images each: noise, features of the bundled model, duplicates; as .npz files."""
    from tokenprune.analysis.images import bundled_images
    from tokenprune.core.signals import signal_named
    from tokenprune.evaluate.loading import load

    found: dict[str, list[str]] = {"noise": [], "bundled": [], "duplicates": []}
    each = -(-count // 3)
    seen = bundled_images(load("bundled"), count=each, want=[signal_named(name) for name in _SIGNALS])
    for seed in range(each):
        image = next(iter(seen)).tokens
        tower = {name: getattr(image, name) for name in ("visual", "text", *_SIGNALS)}
        for kind in found:
            fields = draw(image.n, image.visual.shape[1], seed, kind)
            if kind == "bundled":
                fields |= {name: value for name, value in tower.items() if isinstance(value, torch.Tensor)}
                fields["question"] = torch.ones(len(fields["text"]), dtype=torch.bool)
                # What only a language model gives stays random, but for its states.
                fields["decoder_states"] = fields["decoder_hidden"] = fields["decoder_entered"] = image.visual.float()
            arrays = {
                name: value.detach().cpu().float().numpy() if value.is_floating_point() else value.numpy()
                for name, value in fields.items()
            }
            file = folder / f"{kind}_{seed}.npz"
            np.savez(file, grid=np.array(image.grid or (16, image.n // 16)), **arrays)
            found[kind].append(str(file))
    return found


def choices(before: Path, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """A row per version, method, kind of image and setting."""
    from tokenprune import InTower, strategies
    from tokenprune.core.text import example

    examples = [example(cls) for name, cls in sorted(strategies().items()) if name not in _LEFT_OUT]
    texts = [repr(strategy) for strategy in examples if not isinstance(strategy.place, InTower)]
    images = write_images(folder, count)
    files = [file for kind in images.values() for file in kind]
    kinds = [kind for kind, members in images.items() for _ in members]
    for version, code in (("before", before), ("after", ROOT)):
        reference: list[list[list[int]]] = []
        for setting, variables in SETTINGS.items():
            chooser = Chooser(code, variables)
            if not reference:
                reference = chooser.ask(files=files, strategies=texts, dtype="float64")
            found = chooser.ask(files=files, strategies=texts, dtype="float32")
            chooser.close()
            for place, text in enumerate(texts):
                for kind in images:
                    pairs = [(f[place], r[place]) for f, r, k in zip(found, reference, kinds, strict=True) if k == kind]
                    other = [len(set(kept) - set(wanted)) for kept, wanted in pairs]
                    yield {
                        "version": version,
                        "method": text,
                        "images_of": kind,
                        "setting": setting,
                        "images": len(pairs),
                        "differ": sum(map(bool, other)),
                        "most_other_tokens": max(other),
                    }


def costs(before: Path, turns: int) -> Iterator[dict[str, Any]]:
    """A row per method and size: the two versions take turns."""
    old, new = Chooser(before, {}), Chooser(ROOT, {})
    for method, n, d, k, batch in COSTS:
        order = {"strategy": method.format(k=k), "n": n, "d": d, "batch": batch}
        once = old.ask(**order, repeats=1)
        new.ask(**order, repeats=1)
        repeats = max(1, min(20, round(0.05 / max(once, 1e-4))))
        taken = [(old.ask(**order, repeats=repeats), new.ask(**order, repeats=repeats)) for _ in range(turns)]
        yield {
            "method": order["strategy"],
            "n": n,
            "d": d,
            "batch": batch,
            "before_ms": 1000 * min(a for a, _ in taken),
            "after_ms": 1000 * min(b for _, b in taken),
            "ratio": statistics.median(b / a for a, b in taken),
        }
    old.close()
    new.close()


def main(argv: list[str] | None = None) -> int:
    """Write both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproducible", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images and turns")
    parser.add_argument("--costs", action="store_true", help="only what a selection costs; choices stay as written")
    parser.add_argument("--before", default=BEFORE, help=f"the commit to compare with (default: {BEFORE})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write (default: benchmarks/results)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        worker()
        return 0
    from tokenprune.evaluate.cost.results_file import ResultsFile

    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "code").mkdir()
            before = unpack(options.before, folder / "code")
            tables = {
                "reproducible_choices": (
                    choices(before, folder, 9 if options.quick else 100),
                    ("version", "method", "images_of", "setting"),
                ),
                "reproducible_cost": (costs(before, 3 if options.quick else 25), ("method", "n", "d", "batch")),
            }
            if options.costs:
                del tables["reproducible_choices"]
            for table, (rows, keys) in tables.items():
                file = ResultsFile(options.out / f"{table}.csv", keys, fresh=True)
                for row in rows:
                    print(file.add(row), flush=True)
                file.note("cpu", before=options.before)
    except subprocess.CalledProcessError as error:
        print(f"not run: {options.before} cannot be unpacked from this repository ({error})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
