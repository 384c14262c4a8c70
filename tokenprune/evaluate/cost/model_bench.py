"""Dense against pruned on a model of real size with random weights: time by stage, memory, bounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenprune.core.signals import IMAGE_KEY, PROJECT, FromProjector, FromTower, Signal
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.answer import Stages, answer_timed
from tokenprune.evaluate.cells import DENSE
from tokenprune.evaluate.cost.break_even import Pace, output_lengths
from tokenprune.evaluate.cost.configs import random_model, random_pictures, random_prompts
from tokenprune.evaluate.cost.flops import decode_flops, prefill_flops
from tokenprune.evaluate.cost.kv import cache_layers
from tokenprune.evaluate.cost.memory import peak_memory
from tokenprune.evaluate.cost.roofline import Roofline
from tokenprune.evaluate.cost.shapes import DecoderShape, TowerShape
from tokenprune.evaluate.cost.timing import Spread, spread, time_call
from tokenprune.models import adapter_for
from tokenprune.models.reading.vision import Vision


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a model benchmark is run with.

    Attributes:
        config: the model's configuration.
        device: where it runs.
        dtype: of weights and features.
        attention: the attention backend.
        text: text tokens per prompt.
        new: generated tokens per prompt, at least 2.
        repeats: runs that count.
        warmup: runs before them.
        static: decode with a static cache.
        backend: compiler backend of decoding; None runs it as it is.
    """

    config: Any
    device: torch.device
    dtype: torch.dtype
    attention: str = "sdpa"
    text: int = 64
    new: int = 32
    repeats: int = 5
    warmup: int = 1
    static: bool = False
    backend: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("text", 2), ("new", 2), ("repeats", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Setup: {name} must be {least} or more, got {getattr(self, name)}")
        if self.backend is not None and not self.static:
            raise ValueError("Setup: backend needs static=True; a growing cache would be compiled anew at every step")

    def options(self) -> dict[str, Any]:
        """Further arguments of `generate`."""
        if self.backend is None:
            return {"disable_compile": True, **({"cache_implementation": "static"} if self.static else {})}
        from transformers import CompileConfig

        # CUDA graphs, which take the launches out of a step, exist in Inductor on CUDA alone.
        graphs = self.backend == "inductor" and self.device.type == "cuda"
        compiling: Any = CompileConfig(backend=self.backend, mode="reduce-overhead" if graphs else "default")
        compiling.fullgraph = False
        compiling._compile_all_devices = True  # else the library compiles on accelerators alone
        return {"cache_implementation": "static", "compile_config": compiling}


@dataclass
class ModelBench:
    """A model with random weights, and what its runs cost.

    Args:
        setup: how it is run.
        roofline: what the device can do at best.
    """

    setup: Setup
    roofline: Roofline
    _visions: dict[tuple[int, frozenset[Signal]], tuple[Vision, Spread, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        setup = self.setup
        self.model = random_model(setup.config, device=setup.device, dtype=setup.dtype, attention=setup.attention)
        self.adapter = adapter_for(self.model)
        self.decoder, self.tower = DecoderShape.of(setup.config), TowerShape.of(setup.config)
        self.element = torch.empty(0, dtype=setup.dtype).element_size()

    def measure(self, batch: int, strategy: PruningStrategy | None) -> dict[str, Any]:
        """One batch size under one strategy, None for dense: a row of plain numbers; times in ms for the whole batch.

        Args:
            batch: prompts, one picture each.
            strategy: what chooses.
        """
        # The library never makes a static cache shorter than the last one: without this, a pruned run after a dense one
        # would hold, and attend over, as many slots as the dense one.
        vars(self.model).pop("_previous_max_cache_length", None)
        vision, seeing, pictures = self._see(batch, strategy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            inputs = random_prompts(self.setup.config, vision.counts, self.setup.text, device=self.setup.device)
        for _ in range(self.setup.warmup):
            self._run(inputs, vision, strategy)
        with peak_memory(self.setup.device) as peak:
            ran = self._run(inputs, vision, strategy)
            held = cache_layers(ran.cache)
        lengths, kept = ran.lengths, ran.selections[0].kept
        del ran
        runs = []
        for _ in range(self.setup.repeats):
            one = self._run(inputs, vision, strategy)
            runs.append((one.selection, one.prefill, one.decode))
            del one  # the next run must not find its cache still there
        further = self.setup.new - 1
        times = {
            "vision": seeing,
            "selection": spread([1000 * s for s, _, _ in runs if s is not None]),
            "prefill": spread([1000 * p for _, p, _ in runs]),
            "first_token": spread([seeing.median + 1000 * ((s or 0.0) + p) for s, p, _ in runs]),
            "decode_step": spread([1000 * d / further for _, _, d in runs]),
        }
        row: dict[str, Any] = {"tokens_kept": kept, "tokens_in_decoder": sum(lengths) / len(lengths) - self.setup.text}
        for stage, found in times.items():
            row[f"{stage}_ms"] = None if found is None else found.median
            row[f"{stage}_ms_q25"] = None if found is None else found.low
            row[f"{stage}_ms_q75"] = None if found is None else found.high
        step = times["decode_step"]
        assert step is not None  # there is at least one run
        row["tokens_per_second"] = 1000 * batch / step.median
        row |= {"peak_bytes": peak.total, "peak_above_bytes": peak.above, "peak_of": peak.what}
        row["kv_bytes"] = sum(layer.bytes for layer in held)
        row["kv_layer_bytes_most"] = max(layer.bytes for layer in held)
        row["kv_layer_bytes_least"] = min(layer.bytes for layer in held)
        return row | self._bounds(lengths, batch, pictures, sum(vision.counts))

    def sweep(self, sizes: Sequence[int], strategy: PruningStrategy) -> Iterator[dict[str, Any]]:
        """One prompt of each size, dense and pruned: what the break-even in visual tokens is read from.

        The visual tokens are noise in the place of the projector's output, so that any number of them can be had.

        Args:
            sizes: visual tokens before pruning.
            strategy: what chooses.
        """
        setup = self.setup
        for size in sizes:
            generator = torch.Generator(device=setup.device).manual_seed(size)
            noise = torch.randn(size, self.decoder.width, device=setup.device, generator=generator).to(setup.dtype)
            vision = Vision(features=noise, counts=(size,), grids=(None,), signals={IMAGE_KEY: (size,)})
            inputs = random_prompts(setup.config, vision.counts, setup.text, device=setup.device)
            found: dict[str, list[Stages]] = {"dense": [], "pruned": []}
            for number in range(setup.warmup + max(3, setup.repeats)):
                for name, chooser in (("dense", None), ("pruned", strategy)):
                    ran = answer_timed(
                        self.adapter, inputs, vision, chooser, max_new_tokens=1, options={"disable_compile": True}
                    )
                    if number >= setup.warmup:
                        found[name].append(ran)
            dense, pruned = (spread([1000 * ran.prefill for ran in found[name]]) for name in ("dense", "pruned"))
            choosing = spread([1000 * (ran.selection or 0.0) for ran in found["pruned"]])
            assert dense is not None
            assert pruned is not None
            assert choosing is not None
            yield {
                "visual_tokens": size,
                "tokens_kept": found["pruned"][0].selections[0].kept,
                "dense_prefill_ms": dense.median,
                "pruned_prefill_ms": pruned.median,
                "selection_ms": choosing.median,
                "gain_ms": dense.median - pruned.median - choosing.median,
            }

    def _run(self, inputs: Mapping[str, Any], vision: Vision, strategy: PruningStrategy | None) -> Stages:
        options = self.setup.options()
        return answer_timed(self.adapter, inputs, vision, strategy, max_new_tokens=self.setup.new, options=options)

    def _see(self, batch: int, strategy: PruningStrategy | None) -> tuple[Vision, Spread, int]:
        """The encoded pictures, the time that takes, and how many went through the tower."""
        read = () if strategy is None else strategy.needs
        tower = {signal for signal in read if isinstance(signal.source, FromTower | FromProjector) or signal is PROJECT}
        want = frozenset({IMAGE_KEY, *tower})  # one time for all that read the same of the tower
        if (batch, want) not in self._visions:
            self._visions.clear()  # one batch size at a time fits
            setup = self.setup
            with torch.random.fork_rng(devices=[setup.device] if setup.device.type == "cuda" else []):
                torch.manual_seed(0)
                inputs = random_pictures(setup.config, batch, dtype=setup.dtype, device=setup.device)
            with torch.no_grad():
                taken = time_call(
                    lambda: self.adapter.encode(inputs, want), setup.device, warmup=1, repeats=setup.repeats
                )
                vision = self.adapter.encode(inputs, want)
            pixels = inputs["pixel_values"]
            self._visions[batch, want] = vision, taken, pixels.shape[:-3].numel()
        return self._visions[batch, want]

    def _bounds(self, lengths: Sequence[int], batch: int, pictures: int, visual: int) -> dict[str, Any]:
        """Operations by formula and the least times that they allow, in ms."""
        decoder, tower, element = self.decoder, self.tower, self.element
        flops = prefill_flops(decoder, lengths, rows=batch, tower=tower, pictures=pictures, visual=visual)
        weights = element * (decoder.layers * decoder.matrix + decoder.width * decoder.vocabulary)
        seeing = element * tower.layers * (4 * tower.width**2 + 2 * tower.width * tower.inner)
        middle = [length + self.setup.new // 2 for length in lengths]
        held = batch * sum(middle) * decoder.kv_bytes(element)
        step = decode_flops(decoder, middle, rows=batch)
        return {
            "tower_gflop": flops.tower / 1e9,
            "projector_gflop": flops.projector / 1e9,
            "prefill_gflop": flops.prefill / 1e9,
            "attention_gflop": flops.attention / 1e9,
            "vision_floor_ms": self.roofline.milliseconds(flops.tower + flops.projector, seeing),
            "prefill_floor_ms": self.roofline.milliseconds(flops.prefill, weights),
            "prefill_bound": self.roofline.bound(flops.prefill, weights),
            "decode_step_floor_ms": self.roofline.milliseconds(step, weights + held),
        }


def label(strategy: PruningStrategy | None) -> str:
    """What rows call it."""
    return DENSE if strategy is None else repr(strategy)


def compared(row: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """How a pruned row stands to the dense one of the same batch: ratios, and output lengths at which it is faster.

    Args:
        row: from `ModelBench.measure`.
        dense: likewise, or as a file gives it.
    """
    pace, other = (Pace(first=float(r["first_token_ms"]), step=float(r["decode_step_ms"])) for r in (row, dense))
    return {
        "first_token_speedup": other.first / pace.first,
        "decode_step_speedup": other.step / pace.step,
        "selection_share_of_prefill": float(row["selection_ms"]) / float(row["prefill_ms"]),
        "pays_at_output": str(output_lengths(other, pace)),
    }
