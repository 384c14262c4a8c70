"""What choosing costs: `python -m benchmarks.selection`, with --quick in about half a minute.

Writes into benchmarks/results/, each with a .json of machine, versions and commit:
    selection_bars.csv    what selection has to reach, as ratios
    selection_routes.csv  the routes of `tokenprune.kernels.choose` over n, d, k, batch and dtype
    selection_gram.csv    half of a symmetric product against the whole one

Ways that are compared run in turns, A, B, A, B, and a ratio is the median over the turns: a machine that slows down
slows both. OMP_NUM_THREADS says how many threads all of them have.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tokenprune import GreedyRepMax, Tokens, TrimTokenator
from tokenprune.baselines import CDPruner, DivPrune
from tokenprune.core.selection import Selection
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.cost.memory import peak_memory
from tokenprune.evaluate.cost.results_file import ResultsFile
from tokenprune.evaluate.cost.selection_bench import plain_loop
from tokenprune.kernels import affinity, choose, gram, host, images, loops, pick_each
from tokenprune.kernels.choose import MATRIX_BYTES, Route

RESULTS = Path(__file__).resolve().parent / "results"
CPU = torch.device("cpu")
ROUTES: tuple[Route, ...] = ("host", "torch", "lazy")
# Multiply-adds per second and bytes per second, far below any machine's: what an estimate says to be long is left out.
RATE, READ = 2e10, 4e9
_LONGEST = 15.0
Row = dict[str, Any]


def in_turns(
    ways: dict[str, Callable[[], object]], seconds: float, most: int = 25, *, once: bool = False
) -> dict[str, list[float]]:
    """Milliseconds of each way, one list entry per turn; at least three turns, after one that does not count.

    `once` is for what takes seconds: a single turn, which counts.
    """
    most = 1 if once else most
    for way in () if once else ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    begun = time.perf_counter()
    while len(taken[next(iter(ways))]) < most:
        if len(taken[next(iter(ways))]) >= 3 and time.perf_counter() - begun > seconds:
            break
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(1000 * (time.perf_counter() - start))
    return taken


def noise(n: int, d: int, batch: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Images of noise: what costs do not depend on."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator).to(dtype) for _ in range(batch)]


def compared(bar: str, ours: Callable[[], object], other: Callable[[], object], seconds: float, **facts: Any) -> Row:  # noqa: ANN401
    """One row: both medians per image, the median of the ratio over the turns, and whether it is reached."""
    taken = in_turns({"ours": ours, "other": other}, seconds)
    batch, wanted, larger = facts["batch"], facts["wanted"], facts.pop("larger")
    pairs = zip(taken["ours"], taken["other"], strict=True)
    ratio = statistics.median(b / a if larger else a / b for a, b in pairs)
    reached = "" if wanted is None else (ratio >= wanted if larger else ratio <= wanted)
    times = {f"{name}_ms": statistics.median(values) / batch for name, values in taken.items()}
    return {"bar": bar, **facts, **times, "ratio": ratio, "reached": reached, "turns": len(taken["ours"])}


def bars(seconds: float) -> Iterator[Row]:
    """What selection has to reach on a CPU, and neighbours of it without a bar."""
    for dtype, d in ((torch.float32, 4096), (torch.bfloat16, 4096), (torch.float32, 1024)):
        x = noise(576, d, 1, dtype)[0]
        full, tokens = x.float(), Tokens(x)
        wanted = 1.3 if (dtype, d) == (torch.float32, 4096) else None
        facts = {"n": 576, "k": 64, "d": d, "batch": 1, "dtype": str(dtype)[6:], "wanted": wanted, "larger": False}

        def product(full: torch.Tensor = full) -> torch.Tensor:
            return full @ full.T

        for strategy in (GreedyRepMax(64), DivPrune(64)):

            def select(strategy: PruningStrategy = strategy, tokens: Tokens = tokens) -> Selection:
                return strategy.select(tokens)

            limit = facts | ({} if isinstance(strategy, GreedyRepMax) else {"wanted": None})
            yield compared(f"{strategy!r} over its matrix product", select, product, seconds, **limit)
    stack = noise(576, 1024, 32)
    matrix = affinity(torch.stack(stack), "cosine")
    first = images.first_picks(matrix, "sum")
    valid = torch.ones((1, 576), dtype=torch.bool)

    def eager() -> None:
        for i in range(32):
            loops.max_sum(loops.rows_of(matrix[i : i + 1]), 64, first[i : i + 1], valid)

    facts = {"n": 576, "k": 64, "d": 0, "batch": 32, "dtype": "float32", "wanted": 5.0, "larger": True}
    together, rule = matrix.numpy(), host.Rule("sum", matrix.numpy().dtype, 0.0)
    yield compared(
        "plain torch loop over ours, similarities given",
        lambda: host.walk_together(together, [64] * 32, first.numpy(), [rule] * 32),
        eager,
        seconds,
        **facts,
    )
    for n, d, batch, k in ((576, 4096, 32, 64), (576, 1024, 32, 64), (256, 128, 16, 64)):
        stack = noise(n, d, batch)
        bundle = [Tokens(x) for x in stack]
        facts |= {"n": n, "k": k, "d": d, "batch": batch, "wanted": None}
        yield compared(
            "plain loop with a readback per step over GreedyRepMax, end to end",
            lambda bundle=bundle, k=k: GreedyRepMax(k).select_batch(bundle),  # type: ignore[misc]
            lambda stack=stack, k=k: [plain_loop(x, k) for x in stack],  # type: ignore[misc]
            seconds,
            **facts,
        )
    yield from whole_strategies(seconds)
    yield memory()


def whole_strategies(seconds: float) -> Iterator[Row]:
    """Strategies on a batch of the bundled model's size, over the matrix product of its tokens."""
    batch, n, d = 16, 256, 128
    texts, stack, embeds = noise(30, d, batch), noise(n, d, batch), noise(n, 64, batch)
    bundle = [
        Tokens(x, text=text, clip_visual=e, clip_text=e[:1]) for x, text, e in zip(stack, texts, embeds, strict=True)
    ]
    for strategy in (TrimTokenator(64), GreedyRepMax(64), DivPrune(64), CDPruner(64)):
        facts = {"n": n, "k": 64, "d": d, "batch": batch, "dtype": "float32", "wanted": None, "larger": False}
        yield compared(
            f"{strategy!r} over its matrix product",
            lambda s=strategy: s.select_batch(bundle),  # type: ignore[misc]
            lambda: [x @ x.T for x in stack],
            seconds,
            **facts,
        )


def memory() -> Row:
    """What one selection holds above the tokens, over the matrix and the tokens; large, so that pages do not count."""
    n, d = 6144, 4096
    tokens = Tokens(noise(n, d, 1)[0])
    GreedyRepMax(8).select(Tokens(tokens.visual[:600]))
    with peak_memory(CPU) as peak:
        GreedyRepMax(n // 8).select(tokens)
    size = 4 * n * (n + d)
    ratio = None if peak.above is None else peak.above / size
    return {
        "bar": "memory above the tokens over matrix plus tokens",
        "n": n,
        "k": n // 8,
        "d": d,
        "batch": 1,
        "dtype": "float32",
        "wanted": 1.0,
        "ratio": ratio,
        "reached": "" if ratio is None else ratio <= 1.0,
        "turns": 1,
    }


def estimate(route: str, n: int, k: int, d: int, batch: int) -> float:
    """Seconds on a slow machine."""
    return batch * (k * n * d * 4 / READ if route == "lazy" else n * n * d / RATE)


def routes(quick: bool, seconds: float) -> Iterator[Row]:
    """Milliseconds per image of every route, and of the matrix product beneath."""
    sizes = [(576, 1024, 1), (576, 4096, 1), (576, 8192, 1), (2880, 1024, 1), (2880, 4096, 1), (2880, 8192, 1)]
    sizes += [(576, 1024, 8), (576, 1024, 64), (576, 4096, 32), (16384, 1024, 1), (16384, 4096, 1)]
    for n, d, batch in [(576, 1024, 1), (576, 4096, 1), (2880, 1024, 1), (576, 1024, 8)] if quick else sizes:
        for dtype in (torch.float32,) if quick or n > 3000 else (torch.float32, torch.bfloat16):
            stack = noise(n, d, batch, dtype)
            few = (32, n // 9, n // 2) if n < 10_000 else (32, n // 16)
            for k in few if quick or n > 10_000 else (16, 32, 64, n // 16, n // 9, n // 4, n // 2):
                yield from one_size(stack, k, dtype, seconds)


def one_size(stack: list[torch.Tensor], k: int, dtype: torch.dtype, seconds: float) -> Iterator[Row]:
    """The routes on one size."""
    (n, d), batch = stack[0].shape, len(stack)
    ways: dict[str, Callable[[], object]] = {}
    for route in ROUTES:
        fits = n * n * 4 <= MATRIX_BYTES and (route == "host" or n < 10_000)
        if estimate(route, n, k, d, batch) < _LONGEST and (route == "lazy" or fits):
            ways[route] = lambda route=route: pick_each(stack, [k] * batch, starts=["sum"] * batch, route=route)  # type: ignore[misc]
    if estimate("host", n, k, d, batch) < _LONGEST:
        ways["matrix product"] = lambda: [x.float() @ x.float().T for x in stack]
    once = max(estimate(name, n, k, d, batch) for name in (*ways, "host")) > 2
    taken = in_turns(ways, seconds, most=9, once=once) if ways else {}
    for name, values in taken.items():
        yield {
            "n": n,
            "k": k,
            "d": d,
            "batch": batch,
            "dtype": str(dtype)[6:],
            "route": name,
            "ms": statistics.median(values) / batch,
            "chosen": name == choose(n, k, CPU),
            "turns": len(values),
        }


def grams(seconds: float) -> Iterator[Row]:
    """Half of the product, mirrored, over the whole one."""
    for n, d in ((256, 128), (384, 512), (512, 512), (576, 1024), (576, 4096), (1152, 1024), (2880, 1024)):
        x = noise(n, d, 1)[0]
        out = torch.empty(n, n)

        def whole(x: torch.Tensor = x, out: torch.Tensor = out) -> None:
            torch.mm(x, x.T, out=out)

        taken = in_turns({"whole": whole, "ours": lambda x=x, out=out: gram(x, out=out)}, seconds)  # type: ignore[misc]
        pairs = zip(taken["ours"], taken["whole"], strict=True)
        times = {f"{name}_ms": statistics.median(values) for name, values in taken.items()}
        yield {"n": n, "d": d, **times, "ratio": statistics.median(a / b for a, b in pairs)}


def main(argv: list[str] | None = None) -> int:
    """Measure everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter turns")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default benchmarks/results)")
    args = parser.parse_args(argv or [])
    seconds = 0.5 if args.quick else 3.0
    tables: dict[str, tuple[tuple[str, ...], Iterator[Row]]] = {
        "selection_bars": (("bar", "n", "k", "d", "batch", "dtype"), bars(seconds)),
        "selection_gram": (("n", "d"), grams(seconds / 2)),
        "selection_routes": (("n", "k", "d", "batch", "dtype", "route"), routes(args.quick, seconds / 2)),
    }
    for name, (keys, rows) in tables.items():
        file = ResultsFile(args.out / f"{name}.csv", ("threads", *keys), fresh=True)
        for row in rows:
            shown = file.add({"threads": torch.get_num_threads(), **row})
            print(
                "  ".join(f"{key}={value}" for key, value in shown.items() if key not in ("code", "commit")), flush=True
            )
        file.note("cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
