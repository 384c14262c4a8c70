"""What a result is worth nothing without: metric, counts, position policy, text source, backend, precision, batch."""

from collections.abc import Mapping
from typing import Any

from tokenprune.core.signals import CLIP_TEXT, TEXT, FromDecoder, FromInputs, FromStates
from tokenprune.core.strategy import PruningStrategy

CONDITIONS = (
    *("metric", "metric_version", "model", "data", "device"),
    *("attention", "dtype", "batch_size", "max_new_tokens"),
)
"""Columns of results.csv that say under which conditions a row was measured; equal in all rows of one run."""


def text_source(strategy: PruningStrategy | None) -> str:
    """What of the prompt a strategy reads when it chooses; "none" for one that would choose the same for any question.

    "prompt": input embeddings of every text token, chat template included. "question": those after the last image.
    "clip": CLIP embeddings of the prompt. "decoder": the language model's own signals, which have seen the prompt.
    A pipeline joins those of its stages.

    Args:
        strategy: None for the unpruned model.

    Examples:
        >>> from tokenprune import GreedyRepMax, MIAlignment
        >>> text_source(GreedyRepMax(keep=4)), text_source(MIAlignment(keep=8, text="question") >> GreedyRepMax(keep=4))
        ('none', 'question')
    """
    if strategy is None:
        return "none"
    found: list[str] = []
    for stage in strategy.stages:
        if TEXT in stage.needs:
            found.append(str(getattr(stage, "text", "prompt")))
        if CLIP_TEXT in stage.needs:
            found.append("clip")
        if any(isinstance(signal.source, FromDecoder | FromStates | FromInputs) for signal in stage.needs):
            found.append("decoder")
    return "+".join(dict.fromkeys(found)) or "none"


def text_sources(by_method: Mapping[str, str]) -> str:
    """Which method reads what, in one line.

    Examples:
        >>> text_sources({"random": "none", "mi_alignment": "prompt"})
        'prompt (mi_alignment), none (all others)'
    """
    readers: dict[str, list[str]] = {}
    for method, source in by_method.items():
        readers.setdefault(source, []).append(method)
    quiet = readers.pop("none", [])
    told = [f"{source} ({', '.join(methods)})" for source, methods in readers.items()]
    return ", ".join([*told, f"none ({'all others' if told else 'all'})"] if quiet else told)


def conditions(config: Mapping[str, Any]) -> dict[str, object]:
    """The conditions of a run by column name, from its configuration.

    Args:
        config: as `tokenprune.evaluate.settings.configuration` gives it.
    """
    found = {name: config[name] for name in CONDITIONS if name not in ("model", "data", "device")}
    return {
        **dict.fromkeys(CONDITIONS),  # in the order of the columns
        **found,
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "device": config["device_name"],
    }
