"""One training loop for every stage: AdamW, warm-up and cosine, a log, and checkpoints that resume exactly.

All randomness of a step comes from (seed, stage, step), so a run that was interrupted and resumed sees the same data
as one that was not. Checkpoints are safetensors files: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CHECKPOINT_EVERY: Final = 100
LOG_EVERY: Final = 25
_LOG: Final = logging.getLogger(__name__)

LossFunction = Callable[[np.random.Generator, float], tuple[Tensor, Mapping[str, float]]]
"""Called with the step's generator and the progress (0 to 1); returns the loss and figures for the log."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Settings of one stage.

    Attributes:
        name: also the name of its files.
        steps: optimiser steps.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        decay: weight decay.
        floor: learning rate at the end, as a share of the peak.
    """

    name: str
    steps: int
    lr: float
    warmup: int = 50
    decay: float = 0.02
    floor: float = 0.02

    def rate(self, step: int) -> float:
        """The learning rate's share of the peak at a step: linear warm-up, then a half cosine."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def generator(seed: int, name: str, step: int) -> np.random.Generator:
    """The source of randomness of one step of one stage."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), step])


class Log:
    """Appends one JSON line per report to ``log.jsonl`` in the training folder, and prints it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def write(self, stage: str, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Write one report; ``seconds`` is time spent in this stage."""
        record = {"stage": stage, "step": step, "seconds": round(seconds, 1)}
        record.update({name: round(value, 4) for name, value in figures.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        _LOG.info(" ".join(f"{name}={value}" for name, value in record.items()))


def run_stage(
    stage: Stage,
    module: nn.Module,
    groups: Sequence[tuple[Sequence[nn.Parameter], float]],
    loss_function: LossFunction,
    *,
    seed: int,
    folder: Path,
    log: Log,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 200,
) -> None:
    """Train a module in place through one stage, or load the stage's result if it was finished before.

    Args:
        stage: the settings.
        module: everything that is trained or kept in the checkpoint.
        groups: pairs of parameters and the factor on the learning rate.
        loss_function: see ``LossFunction``.
        seed: seed of the run.
        folder: where ``NAME.safetensors`` (finished) and ``NAME.partial.safetensors`` (interrupted) are kept.
        log: receives the figures.
        evaluate: called now and then and at the end, for instance for accuracy on validation scenes.
        evaluate_every: steps between two evaluations.
    """
    finished = folder / f"{stage.name}.safetensors"
    partial = folder / f"{stage.name}.partial.safetensors"
    if finished.exists():
        module.load_state_dict(load_file(finished))
        _LOG.info("%s: finished before, loaded", stage.name)
        return
    optimiser = torch.optim.AdamW(
        [{"params": list(parameters), "lr": stage.lr * factor, "factor": factor} for parameters, factor in groups],
        betas=(0.9, 0.98),
        weight_decay=stage.decay,
        fused=True,
    )
    first, spent = _resume(partial, module, optimiser)
    start = time.perf_counter() - spent
    sums: dict[str, float] = {}
    for step in range(first, stage.steps):
        for group in optimiser.param_groups:
            group["lr"] = stage.lr * group["factor"] * stage.rate(step)
        loss, figures = loss_function(generator(seed, stage.name, step), step / stage.steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
        optimiser.step()
        for name, value in {"loss": float(loss.detach()), **figures}.items():
            sums[name] = sums.get(name, 0.0) + value / LOG_EVERY
        done = step + 1
        if done % LOG_EVERY == 0:
            log.write(stage.name, done, time.perf_counter() - start, sums)
            sums = {}
        if evaluate is not None and (done % evaluate_every == 0 or done == stage.steps):
            log.write(stage.name, done, time.perf_counter() - start, evaluate())
        if done % CHECKPOINT_EVERY == 0 and done < stage.steps:
            _save(partial, module, optimiser, done, time.perf_counter() - start)
    save_file(_tensors(module), finished)
    partial.unlink(missing_ok=True)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # Tied weights would share memory, which safetensors refuses: every tensor gets its own copy.
    return {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}


def _save(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, step: int, seconds: float) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in _tensors(module).items()}
    for index, state in optimiser.state_dict()["state"].items():
        for name, tensor in state.items():
            tensors[f"adam.{index}.{name}"] = tensor.clone().contiguous()
    tensors["progress"] = torch.tensor([float(step), seconds], dtype=torch.float64)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


def _resume(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    tensors = load_file(path)
    module.load_state_dict(
        {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    step, seconds = tensors["progress"].tolist()
    _LOG.info("%s: resumed at step %d", path.name, int(step))
    return int(step), float(seconds)
