"""What a finished training leaves behind: the model folder, the log as CSV, and the curve."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokenprune.bundled.tokenizer import build_processor
from tokenprune.bundled.vocabulary import BOS, EOS, IDS, PAD

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

MAX_NEW_TOKENS: Final = 3
_LOG: Final = logging.getLogger(__name__)


def export(model: LlavaForConditionalGeneration, folder: Path) -> Path:
    """Save model (weights as float16), processor, generation settings, log and curve below a training folder.

    Args:
        model: the trained model; converted to float16 in place.
        folder: the training folder with ``log.jsonl``.

    Returns:
        ``folder / "model"``.
    """
    from transformers import GenerationConfig

    target = folder / "model"
    model.eval()
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
        pad_token_id=IDS[PAD],
    )
    model.half()
    model.save_pretrained(target)
    build_processor().save_pretrained(target)
    _declare_float32(target / "config.json")
    write_log(folder / "log.jsonl", target)
    return target


def _declare_float32(path: Path) -> None:
    # Stored small as float16, but computed in float32 unless the caller says otherwise: half is slow on most CPUs.
    def declare(node: dict[str, object]) -> None:
        if "dtype" in node:
            node["dtype"] = "float32"
        for child in node.values():
            if isinstance(child, dict):
                declare(child)

    config = json.loads(path.read_text(encoding="utf-8"))
    declare(config)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_log(log: Path, target: Path) -> None:
    """Write ``training_log.csv`` and ``training_curve.png`` from a log.

    Args:
        log: a ``log.jsonl``.
        target: folder for the two files; the CSV has one row per figure: stage, step, seconds, figure, value.
    """
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    target.mkdir(parents=True, exist_ok=True)
    with (target / "training_log.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["stage", "step", "seconds", "figure", "value"])
        for record in records:
            for name, value in record.items():
                if name not in ("stage", "step", "seconds"):
                    writer.writerow([record["stage"], record["step"], record["seconds"], name, value])
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        _LOG.warning("training_curve.png was not drawn: matplotlib is not installed")
        return
    stages = list(dict.fromkeys(record["stage"] for record in records))
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    start = 0.0
    curves = {
        "patch_digit": "digit of a patch, training",
        "validation_patch_digit": "digit of a patch, validation",
        "accuracy": "answers, training",
        "validation_accuracy": "answers, validation",
    }
    for stage in stages:
        own = [record for record in records if record["stage"] == stage]
        for colour, name in enumerate(curves):
            points = [(start + record["seconds"] / 60.0, record[name]) for record in own if name in record]
            if points:
                dots = "." if name.startswith("validation") else ""
                axes.plot(*zip(*points, strict=True), color=f"C{colour}", marker=dots)
        axes.axvline(start, color="0.85", linewidth=0.8)
        axes.text(start, 1.02, stage, rotation=30, fontsize=7)
        start += max(record["seconds"] for record in own) / 60.0
    for colour, label in enumerate(curves.values()):
        axes.plot([], [], color=f"C{colour}", label=label)
    axes.set(xlabel="minutes of training", ylabel="accuracy", ylim=(0.0, 1.0))
    axes.legend(loc="lower right", fontsize=7)
    figure.savefig(target / "training_curve.png", dpi=110, metadata={"Software": None})
