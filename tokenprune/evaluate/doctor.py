"""Does pruning work on this model? Each check compares with something that knows nothing of pruned prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenprune.baselines import FastV
from tokenprune.core.budget import keep_count
from tokenprune.core.signals import declared
from tokenprune.core.strategy import PruningStrategy
from tokenprune.models import Record, UnsupportedError, adapter_for, prune
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.prompt.dense import is_placeholder
from tokenprune.models.reading.sources import in_decoder
from tokenprune.repmax import GreedyRepMax

Status = Literal["ok", "failed", "unsupported"]
Inputs = Mapping[str, Any]
MakeInputs = Callable[[Sequence[str]], Inputs]
"""From questions to the model's arguments: one prompt with one image for each."""

QUESTIONS = ("what is this ?", "tell me what there is to see in the picture , please ?")
KEEP = 0.25
STEPS = 3
SUFFIX = {"paligemma": 1}
"""`token_type_ids` of generated text, for families in which that of the prompt sees what comes after it."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of logits, relative to the largest logit; 0.05 in half precision."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried: `detail` says what was found, `difference` how far logits were apart, relatively."""

    name: str
    status: Status
    detail: str
    difference: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose_model` found.

    Attributes:
        family: `model_type` of the model's configuration.
        model: class of the model.
        adapter: class of its adapter.
        sites: where strategies can act.
        signals: fields of `Tokens` that strategies before the language model can get.
        decoder_signals: those that strategies inside it can get besides.
        missing: fields and sites that are not supported, and why.
        visual_tokens: of one image.
        layers: of the language model.
        checks: what was tried.
    """

    family: str
    model: str
    adapter: str
    sites: tuple[str, ...]
    signals: tuple[str, ...]
    decoder_signals: tuple[str, ...]
    missing: dict[str, str]
    visual_tokens: int
    layers: int
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """True when nothing failed; what is not supported is no failure."""
        return all(check.status != "failed" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, strings and lists."""
        return {**asdict(self), "healthy": self.healthy}


class _FailedError(Exception):
    """A check found something wrong."""


class _Patient:
    """The model under examination."""

    def __init__(self, model: Any, make_inputs: MakeInputs) -> None:  # noqa: ANN401
        self.adapter: Adapter = adapter_for(model)
        self.given = model
        self.model = self.adapter.model  # inside of what was given, when that is a wrapper
        self.make_inputs = make_inputs
        self.inputs = make_inputs(QUESTIONS[:1])
        self.ids: Tensor = self.inputs["input_ids"]
        self.columns = is_placeholder(self.ids, self.adapter)[0].nonzero().flatten()
        self.tolerance = TOLERANCE.get(self.model.dtype, 0.05)
        self.settings: dict[str, Any] = {
            "max_new_tokens": STEPS,
            "min_new_tokens": STEPS,
            "do_sample": False,
            "suppress_tokens": sorted(self.adapter.image_token_ids),  # random weights would say anything
            "output_logits": True,
            "return_dict_in_generate": True,
        }

    def compare(self, found: Tensor, expected: Tensor, what: str) -> float:
        """Relative difference of logits.

        Raises:
            _FailedError: when it is too large.
        """
        found, expected = found.float().cpu(), expected.float().cpu()
        scale = max(float(expected.abs().max()), 1e-6)
        difference = float((found - expected).abs().max()) / scale
        if not difference <= self.tolerance:  # NaN is a failure too
            raise _FailedError(f"logits differ from {what} by {difference:.2e}, relative to the largest")
        return difference

    def generate(self, inputs: Inputs, **changes: Any) -> Any:  # noqa: ANN401
        """Greedy tokens with their logits."""
        generate = getattr(self.given, "generate", None) or self.model.generate
        with torch.no_grad():
            return generate(**inputs, **{**self.settings, **changes})

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits behind the last column of each row."""
        with torch.no_grad():
            logits: Tensor = self.given(**inputs).logits[:, -1]
        return logits

    def dropped(self, record: Record) -> Tensor:
        """Columns of the visual tokens that the last call dropped."""
        kept = torch.cat([image.indices for image in record.images]).to(self.columns.device)
        keep = torch.zeros_like(self.columns, dtype=torch.bool)
        keep[kept] = True
        return self.columns[~keep]


def diagnose_model(model: Any, make_inputs: MakeInputs) -> Diagnosis:  # noqa: ANN401
    """Prune one image in every supported way and compare.

    Removing tokens with their positions kept must give what the model gives on its whole prompt when nobody attends to
    them. That masked run is made with hooks on the decoder layers of the plain model; masks, caches and positions of
    this package have no part in it.

    Args:
        model: a transformers model in evaluation mode, or a wrapper around one, which is then what is called.
        make_inputs: makes its arguments from questions, on its device, padded on the left.

    Raises:
        ValueError: when no adapter serves the model's family.
    """
    patient = _Patient(model, make_inputs)
    adapter = patient.adapter
    decoder = [signal.name for signal in declared() if in_decoder(signal) and adapter.why_not(signal) is None]
    return Diagnosis(
        family=str(patient.model.config.model_type),
        model=type(patient.model).__name__,
        adapter=type(adapter).__name__,
        sites=tuple(sorted(adapter.sites)),
        signals=tuple(sorted(adapter.signals)),
        decoder_signals=tuple(sorted(decoder)),
        missing=dict(getattr(adapter, "reasons", {})),
        visual_tokens=len(patient.columns),
        layers=len(adapter.decoder_layers),
        checks=tuple(_run(name, check, patient) for name, check in CHECKS.items()),
    )


def _run(name: str, check: Callable[[_Patient], tuple[str, float | None]], patient: _Patient) -> Check:
    try:
        detail, difference = check(patient)
    except UnsupportedError as error:
        return Check(name, "unsupported", str(error))
    except _FailedError as error:
        return Check(name, "failed", str(error))
    except Exception as error:
        return Check(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Check(name, "ok", detail, difference)


def _keep_all(patient: _Patient) -> tuple[str, float | None]:
    plain = patient.generate(patient.inputs)
    with prune(patient.model, GreedyRepMax(1.0)) as record:
        same = patient.generate(patient.inputs)
    if record.kept_share != 1.0:
        raise _FailedError(f"asked to keep everything, kept {record.tokens_kept} of {record.tokens_in}")
    difference = patient.compare(torch.stack(same.logits), torch.stack(plain.logits), "those of the plain model")
    exact = all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True))
    return "the plain model's logits" + (", bit for bit" if exact else ""), difference


def _before(patient: _Patient) -> tuple[str, float | None]:
    return _against_masked(patient, GreedyRepMax(KEEP), 0)


def _inside(patient: _Patient) -> tuple[str, float | None]:
    layer = max(1, len(patient.adapter.decoder_layers) // 2)
    return _against_masked(patient, FastV(KEEP, layer=layer), layer)


def _against_masked(patient: _Patient, strategy: PruningStrategy, layer: int) -> tuple[str, float | None]:
    window = getattr(patient.adapter.decoder.config, "sliding_window", None)
    if window is not None and window < patient.ids.shape[1]:
        raise UnsupportedError(
            f"sliding windows of {window} tokens count the tokens that are there: removing is not masking, and there "
            "is nothing to compare with"
        )
    with prune(patient.model, strategy, positions="original") as record:
        logits = patient.forward(patient.inputs)
    total = len(patient.columns)
    wanted = keep_count(KEEP, total)
    if (record.tokens_in, record.tokens_kept) != (total, wanted):
        raise _FailedError(
            f"{strategy!r} should keep {wanted} of {total} tokens; the record says {record.tokens_kept} of "
            f"{record.tokens_in}"
        )
    with _masked(patient.adapter, patient.dropped(record), layer):
        expected = patient.forward(patient.inputs)
    plain = patient.forward(patient.inputs)
    difference = patient.compare(logits, expected, "a whole run in which the dropped tokens are masked")
    moved = float((expected - plain).abs().max()) / max(float(plain.abs().max()), 1e-6)
    return f"kept {wanted} of {total} tokens with {strategy!r}; dropping them moves logits by {moved:.1e}", difference


@contextmanager
def _masked(adapter: Adapter, dropped: Tensor, first: int) -> Iterator[None]:
    """While open, nobody attends to some columns of the prompt in decoder layers from `first` on."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        mask, length = kwargs.get("attention_mask"), hidden.shape[1]
        columns = dropped.to(hidden.device)
        if "flash" in str(adapter.decoder.config._attn_implementation):
            mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.clone()
            mask[:, columns] = 0
        elif mask is None:
            seen = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
            seen[:, columns] = False
            seen |= torch.eye(length, dtype=torch.bool, device=hidden.device)
            least = torch.finfo(hidden.dtype).min
            mask = torch.zeros(1, 1, length, length, device=hidden.device, dtype=hidden.dtype).masked_fill(~seen, least)
        else:
            mask = mask.clone()
            mask[..., columns] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            mask[..., columns, columns] = True if mask.dtype == torch.bool else 0.0  # lest a row be empty
        return args, {**kwargs, "attention_mask": mask}

    handles = [
        layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in list(adapter.decoder_layers)[first:]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _decoding(patient: _Patient) -> tuple[str, float | None]:
    """Every step with the cache against a forward over everything so far, without one."""
    worst = 0.0
    with prune(patient.model, GreedyRepMax(KEEP), positions="original"):
        output = patient.generate(patient.inputs)
        for step in range(STEPS):
            ids = output.sequences[:, : patient.ids.shape[1] + step]
            expected = patient.forward(longer(patient.inputs, ids, patient.model.config.model_type))
            what = f"those without a cache at step {step}"
            worst = max(worst, patient.compare(output.logits[step], expected, what))
    return f"{STEPS} steps", worst


def longer(inputs: Inputs, ids: Tensor, family: str) -> Inputs:
    """The same prompt with more text behind it.

    Args:
        inputs: the model's arguments.
        ids: int64 (b, l + more).
        family: `model_type` of the model.
    """
    more = ids.shape[1] - inputs["input_ids"].shape[1]
    changed = {"input_ids": ids}
    for name, value in inputs.items():
        if name != "input_ids" and isinstance(value, Tensor) and value.shape == inputs["input_ids"].shape:
            last = value[:, -1:].expand(-1, more)
            if name == "token_type_ids" and family in SUFFIX:
                last = torch.full_like(last, SUFFIX[family])
            changed[name] = torch.cat([value, last], dim=1)
    return {**inputs, **changed}


def _padded_batch(patient: _Patient) -> tuple[str, float | None]:
    both = patient.make_inputs(QUESTIONS)
    with prune(patient.model, GreedyRepMax(KEEP)):
        batch = torch.stack(patient.generate(both).logits, 1)
        rows = [torch.stack(patient.generate(patient.make_inputs([q])).logits, 1) for q in QUESTIONS]
    difference = patient.compare(batch, torch.cat(rows), "those of its rows alone")
    return "2 prompts of different length", difference


def _beams(patient: _Patient) -> tuple[str, float | None]:
    changes = {"num_beams": 2, "output_scores": True}
    both = patient.make_inputs(QUESTIONS)
    with prune(patient.model, GreedyRepMax(KEEP)):
        batch = patient.generate(both, **changes).sequences_scores
        rows = [patient.generate(patient.make_inputs([q]), **changes).sequences_scores for q in QUESTIONS]
    return "2 prompts, 2 beams", patient.compare(batch, torch.cat(rows), "those of its rows alone")


def _static(patient: _Patient) -> tuple[str, float | None]:
    with prune(patient.model, GreedyRepMax(KEEP)):
        dynamic = torch.stack(patient.generate(patient.inputs).logits)
        # Compiling is transformers' own affair, and takes minutes.
        changes = {"cache_implementation": "static", "disable_compile": True}
        static = torch.stack(patient.generate(patient.inputs, **changes).logits)
    return "a cache of fixed size", patient.compare(static, dynamic, "those with a dynamic cache")


def _turns(patient: _Patient) -> tuple[str, float | None]:
    with prune(patient.model, GreedyRepMax(KEEP), positions="original", turns="freeze"):
        first = patient.generate(patient.inputs)
        ids = torch.cat([first.sequences, patient.ids[:, -1:].expand(-1, 2)], dim=1)
        said = longer(patient.inputs, ids, patient.model.config.model_type)
        kept = patient.generate(said, past_key_values=first.past_key_values)
        anew = patient.generate(said)
    found, expected = torch.stack(kept.logits), torch.stack(anew.logits)
    return "a second turn on the kept cache", patient.compare(found, expected, "those without it")


def _restored(patient: _Patient) -> tuple[str, float | None]:
    before = patient.forward(patient.inputs)
    hooks = [len(module._forward_pre_hooks) for module in patient.model.modules()]
    attributes, config = set(vars(patient.model)), id(patient.model.config)
    with prune(patient.model, GreedyRepMax(KEEP)):
        patient.generate(patient.inputs)
    if hooks != [len(module._forward_pre_hooks) for module in patient.model.modules()]:
        raise _FailedError("hooks were left on the model")
    left = set(vars(patient.model)) - attributes - {"_previous_max_cache_length"}  # the latter is transformers' own
    if left or id(patient.model.config) != config:
        raise _FailedError(f"attributes were left on the model: {', '.join(sorted(left)) or 'config'}")
    if not torch.equal(patient.forward(patient.inputs), before) and patient.model.device.type == "cpu":
        raise _FailedError("the plain model gives other logits than before")
    return "no hooks, no attributes, the same logits as before", None


CHECKS: dict[str, Callable[[_Patient], tuple[str, float | None]]] = {
    "keep everything": _keep_all,
    "before the language model": _before,
    "inside the language model": _inside,
    "decoding": _decoding,
    "padded batch": _padded_batch,
    "beams": _beams,
    "static cache": _static,
    "second turn": _turns,
    "left as it was": _restored,
}
"""What is tried, in order."""
