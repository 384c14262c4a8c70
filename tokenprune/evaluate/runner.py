"""Run cells: every sample once under each strategy, timed by stage, on shared vision features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenprune.core.merging import Merging
from tokenprune.core.places import Positions
from tokenprune.core.signals import Signal
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.answer import answer_lengths, answer_timed, end_ids
from tokenprune.evaluate.answers import signals_of
from tokenprune.evaluate.batches import Batch, PictureNames, make_batches, processed
from tokenprune.evaluate.cells import Cell
from tokenprune.evaluate.features import DEFAULT_CACHE_BYTES, FeatureCache, join_vision, split_vision, take_images
from tokenprune.evaluate.loading import LoadedModel, on_device
from tokenprune.evaluate.samples import Sample
from tokenprune.models import adapter_for, build_prompt, select_tokens
from tokenprune.models.clock import now
from tokenprune.models.encode.clip import see
from tokenprune.models.plan import make_plan
from tokenprune.models.prompt.choose import fit_strategy
from tokenprune.models.reading.vision import Vision


@dataclass
class Runner:
    """Runs cells on one model and one data set.

    Times are wall clock, in seconds per batch, with the device synchronised at both ends:

    - vision: tower and projector, once per picture and outside of all cells; reading and resizing files not included.
      Strategies inside the tower run it themselves, in every batch, and have a time of their own.
    - selection: the strategy's choice and the building of the shorter prompt; what pruning costs. None for dense.
    - prefill: embedding and merging the prompt, the forward pass over it, and the choice of the first token; choices
      made inside the decoder count as selection.
    - decode: all further tokens, until every answer of the batch has ended.

    The first batch of a cell warms up and its times are not counted; when it is the only one, it runs twice.

    Args:
        loaded: the model and its processor.
        samples: the data set.
        batch_size: samples per batch.
        max_new_tokens: length limit of an answer.
        positions: "original" or "compact" for every strategy; None leaves it to each strategy's authors.
        cache_bytes: memory for vision features; pictures beyond it are encoded again in every cell.
    """

    loaded: LoadedModel
    samples: Sequence[Sample]
    batch_size: int = 16
    max_new_tokens: int = 16
    positions: Positions | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    names: PictureNames = field(default_factory=PictureNames)

    def __post_init__(self) -> None:
        self.adapter = adapter_for(self.loaded.model)
        self.adapter.clip = self.loaded.clip
        self.device = torch.device(self.loaded.device)
        self.cache = FeatureCache(self.cache_bytes)
        self.batches: list[Batch] = []
        self.vision_times: list[dict[str, Any]] = []
        self._want: frozenset[Signal] = frozenset()

    def check(self, strategies: Sequence[PruningStrategy]) -> int:
        """Raise unless every strategy can run on this model and accepts the first sample; takes a moment.

        Returns:
            Visual tokens of the first sample's first image.

        Raises:
            ValueError: names the strategy and what does not fit.
        """
        for strategy in strategies:
            fit_strategy(strategy, self.adapter)
        self._want = signals_of(strategies)
        batch, inputs = next(make_batches(self.loaded.processor, self.samples[:1], 1, self.names))
        vision = self._encode(inputs, len(batch.pictures), range(len(batch.pictures)))
        prompt = build_prompt(self.adapter, self._ids(batch), vision)
        for strategy in strategies:
            plan = make_plan(fit_strategy(strategy, self.adapter))
            shown = prompt
            if plan.tower is not None:
                merged = self._encode(inputs, len(batch.pictures), range(len(batch.pictures)), plan.tower)
                shown = build_prompt(self.adapter, self._ids(batch), merged)
            select_tokens(plan.before, shown)
        return prompt.segments[0].columns.shape[0]

    def prepare(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Tokenise all samples and encode every picture once; `progress` is told how many samples are done."""
        self.batches.clear()
        self.vision_times.clear()
        for batch, inputs in make_batches(self.loaded.processor, self.samples, self.batch_size, self.names):
            if not self.batches:  # warm-up: the first pass through the tower allocates and chooses kernels
                self._encode(inputs, len(batch.pictures), range(len(batch.pictures)))
            self._features(batch, inputs)
            self.batches.append(batch)
            progress(len(batch.samples))

    def run(self, cell: Cell, progress: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """All samples under the cell's strategy, as plain values for the run folder; `progress` is called per batch."""
        records: list[dict[str, Any]] = []
        times: list[dict[str, Any]] = []
        for number, batch in enumerate(self.batches):
            warm = number > 0
            if len(self.batches) == 1:
                self.run_batch(batch, cell.strategy, cell.positions)
                warm = True
            answers, seconds = self.run_batch(batch, cell.strategy, cell.positions)
            records.extend(answers)
            times.append({"samples": len(batch.samples), "counted": warm, **seconds})
            progress()
        return {
            "cell": cell.id,
            "strategy": None if cell.strategy is None else repr(cell.strategy),
            "positions": self._policy(cell),
            "samples": records,
            "batches": times,
        }

    def run_batch(
        self, batch: Batch, strategy: PruningStrategy | None, positions: Positions | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
        """One batch: an answer and the kept tokens per sample, and the seconds of each stage."""
        tower = None if strategy is None else make_plan(strategy).tower
        features, seeing = (self._features(batch), None) if tower is None else self._merged(batch, tower)
        ran = answer_timed(
            self.adapter,
            self._ids(batch),
            features,
            strategy,
            positions=positions or self.positions,
            max_new_tokens=self.max_new_tokens,
        )
        new = ran.new.cpu()
        texts = self.loaded.processor.batch_decode(new, skip_special_tokens=True)
        records: list[dict[str, Any]] = [
            {"id": sample.id, "answer": text.strip(), "output_tokens": length, "images": []}
            for sample, text, length in zip(
                batch.samples, texts, answer_lengths(new, end_ids(self.loaded.model)), strict=True
            )
        ]
        for i, (segment, selection) in enumerate(zip(ran.prompt.segments, ran.selections, strict=True)):
            indices = None if strategy is None else selection.indices.tolist()
            entry: dict[str, Any] = {"tokens_in": selection.total, "tokens_out": selection.kept, "indices": indices}
            if ran.layer_tokens:
                entry["layer_average"] = sum(ran.layer_tokens[i]) / len(ran.layer_tokens[i])
            records[segment.row]["images"].append(entry)
        seconds = {"selection": ran.selection, "prefill": ran.prefill, "decode": ran.decode}
        return records, seconds if seeing is None else {"vision": seeing, **seconds}

    def _policy(self, cell: Cell) -> Positions:
        own = cell.positions or self.positions
        return own or ("compact" if cell.strategy is None else cell.strategy.place.positions)

    def _ids(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: value.to(self.device) for name, value in batch.inputs.items()}

    def _features(self, batch: Batch, inputs: Mapping[str, Any] | None = None) -> Vision:
        def encode(places: list[int]) -> Vision:
            source = processed(self.loaded.processor, batch.samples) if inputs is None else inputs
            start = now(self.device)
            vision = self._encode(source, len(batch.pictures), places)
            if inputs is not None:
                seconds = now(self.device) - start
                images = len(places) if self.adapter.images_apart else len(batch.pictures)
                self.vision_times.append({"images": images, "seconds": seconds, "counted": True})
            return vision

        return self.cache.get(batch.pictures if self.adapter.images_apart else batch.encodings, encode)

    def _merged(self, batch: Batch, tower: Merging) -> tuple[Vision, float]:
        """Features of a strategy inside the tower, and the seconds that they took: nobody else can use them."""
        inputs, images = processed(self.loaded.processor, batch.samples), len(batch.pictures)
        start = now(self.device)
        vision = self._encode(inputs, images, range(images), tower)
        return vision, now(self.device) - start

    @torch.no_grad()
    def _encode(
        self, inputs: Mapping[str, Any], images: int, places: Sequence[int], tower: Merging | None = None
    ) -> Vision:
        if self.adapter.images_apart:
            taken = take_images(inputs, self.adapter.modality_keys, images, places)
            return see(self.adapter, on_device(taken, self.loaded), self._want, tower)
        # All images of the batch, and the prompts that tell what belongs together; then those that are wanted.
        vision = see(self.adapter, on_device(inputs, self.loaded), self._want, tower)
        if len(vision.counts) != images:
            raise ValueError(
                f"Runner: {images} pictures became {len(vision.counts)} images of the prompts; processors that make "
                "several of one (crops, frames) cannot be measured, so turn that off"
            )
        parts = split_vision(vision)
        return join_vision([parts[place] for place in places])
