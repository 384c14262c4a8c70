"""Where the time of `tokenprune compare` on the bundled model goes: `python -m benchmarks.compare_profile`.

Writes into benchmarks/results/:
    compare_profile.csv   seconds and share by part, nothing counted twice
    compare_waste.csv     the largest waste that was found, before and after, in one run
    compare_profile.json  machine, versions, commit
The comparison runs in a process of its own, so that importing counts too. Timers stand around a dozen functions; a
profiler that watches every call would slow Python down and leave matrix products as they are.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tokenprune.bundled import load_scenes
from tokenprune.evaluate.environment import device_name, git_state, load_average, package_versions, usable_cores

RESULTS = Path(__file__).resolve().parent / "results"

# Part, module and name of each function; what one of them calls is taken off the caller's time.
PARTS = (
    ("model and processor", "tokenprune.cli.compare", "load_model"),
    ("scenes and questions", "tokenprune.cli.compare", "samples_of"),
    ("checks before the run", "tokenprune.evaluate.comparison", "check_samples"),
    ("checks before the run", "tokenprune.evaluate.runner", "Runner.check"),
    ("pictures and prompts to tensors", "tokenprune.evaluate.runner", "Runner.prepare"),
    ("vision", "tokenprune.evaluate.runner", "Runner._encode"),
    ("answers to text, records, files", "tokenprune.evaluate.runner", "Runner.run"),
    ("model runs, rest", "tokenprune.evaluate.runner", "answer_timed"),
    ("statistics", "tokenprune.evaluate.comparison", "summarise"),
    ("tables on disk", "tokenprune.evaluate.comparison", "export"),
    ("figure of accuracies", "tokenprune.evaluate.comparison", "accuracy_figure"),
    ("figure of kept tokens", "tokenprune.evaluate.comparison", "kept_tokens_figure"),
    ("gallery of kept tokens", "tokenprune.evaluate.report.folder", "write_gallery"),
    ("gallery of kept tokens", "tokenprune.evaluate.comparison", "kept_slides"),
    ("report page", "tokenprune.evaluate.report.folder", "render"),
    ("table on the terminal", "tokenprune.cli.compare", "_print"),
)
REST = "imports and all else"
STAGES = ("selection", "prefill", "decode")


class Clock:
    """Seconds by part; while an inner part runs, the outer one stands still."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def turn(self) -> None:
        """Book the time since the last turn on the part that is open."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked on a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.turn()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self._open.pop()

        return timed

    def install(self) -> None:
        """Wrap every function of `PARTS`, and take the stages' times out of what `answer_timed` returns."""
        for part, module, name in PARTS:
            owner: Any = import_module(module)
            *path, last = name.split(".")
            for step in path:
                owner = getattr(owner, step)
            setattr(owner, last, self.around(part, getattr(owner, last)))
        runner: Any = import_module("tokenprune.evaluate.runner")
        answer_timed = runner.answer_timed

        def split(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            ran = answer_timed(*args, **kwargs)
            for stage in STAGES:
                seconds = getattr(ran, stage) or 0.0
                self.seconds[stage] += seconds
                self.seconds["model runs, rest"] -= seconds
            return ran

        runner.answer_timed = split


def profiled(options: list[str]) -> dict[str, float]:
    """Run the comparison in this process; seconds by part."""
    begun = time.perf_counter()
    clock = Clock()
    clock.install()
    main = import_module("tokenprune.cli.main").main
    with tempfile.TemporaryDirectory() as folder:
        if main(["compare", "--out", folder, *options]) != 0:
            raise RuntimeError("the comparison did not finish")
    total = time.perf_counter() - begun
    return {**clock.seconds, REST: total - sum(clock.seconds.values())}


def savefig(figure: Any) -> bytes:  # noqa: ANN401
    """A figure as PNG the usual way, as it was done before the profile."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


def waste() -> list[dict[str, object]]:
    """The figure of kept tokens, drawn and compressed both ways in turn: median processor seconds, and bytes."""
    gallery: Any = import_module("tokenprune.evaluate.gallery")
    ways = {"savefig, as before": savefig, "one pass, no alpha channel": gallery.to_png}
    scenes = load_scenes(count=5)
    answer = gallery.Answer(text="answer", correct=True, indices=tuple(range(0, 256, 9)))
    columns = [
        gallery.Column(
            picture=np.asarray(scene.image.convert("RGB")),
            grid=(16, 16),
            question=scene.questions[0].text,
            reference=scene.questions[0].answer,
            answers=(answer,) * 7,
        )
        for scene in scenes
    ]
    taken: dict[str, list[float]] = {name: [] for name in ways}
    size = {}
    for turn in range(6):
        for name, way in ways.items():
            gallery.to_png = way
            begun = time.process_time()
            size[name] = len(gallery.gallery(columns, [f"row {i}" for i in range(7)]))
            if turn:  # the first round imports and builds font caches
                taken[name].append(time.process_time() - begun)
    gallery.to_png = ways["one pass, no alpha channel"]
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    first = medians["savefig, as before"]
    return [
        {"way": name, "cpu_seconds": round(s, 3), "times_faster": round(first / s, 2), "bytes": size[name]}
        for name, s in medians.items()
    ]


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """One CSV file, and the same on the terminal."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        first, *others = row.items()
        print(f"{first[1]:34} " + "  ".join(f"{name} {value}" for name, value in others))
    print()


def main(argv: list[str] | None = None) -> int:
    """Profile in a fresh process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=200, help="questions (default 200, half of what tokenprune compare asks)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args([] if argv is None else argv)
    options = ["--count", str(args.count)]
    if args.child is not None:
        args.child.write_text(json.dumps(profiled(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "benchmarks.compare_profile", "--child", str(result), *options]
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - begun
        seconds: dict[str, float] = json.loads(result.read_text())
    seconds[REST] += wall - sum(seconds.values())  # starting Python
    args.out.mkdir(parents=True, exist_ok=True)
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    parts = [{"part": part, "seconds": round(taken, 3), "share": round(taken / wall, 4)} for part, taken in ordered]
    write(args.out / "compare_profile.csv", parts)
    write(args.out / "compare_waste.csv", waste())
    facts = {
        "questions": args.count,
        "seconds": round(wall, 2),
        "machine": device_name("cpu"),
        "cores": usable_cores(),
        "load_average": load_average(),
        "versions": package_versions(),
        "git": git_state(),
    }
    (args.out / "compare_profile.json").write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
