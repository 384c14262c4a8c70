"""Options that several commands share, and what they ask for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from tokenprune.core.places import Positions
    from tokenprune.evaluate.loading import LoadedModel
    from tokenprune.evaluate.samples import Sample

BUNDLED_DATA = "bundled scenes"
Texts = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False, show_default=False)]
"""An option that may be repeated."""
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
JsonFlag = Annotated[
    bool, Parameter(negative=(), show_default=False, group="Output", help="print JSON and nothing else")
]
Out = Annotated[Path, Parameter(group="Output", help="folder that the run folder is made in")]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
_given: list[str] = []


@Parameter(name="*", group="Model")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Say which model runs where.

    Attributes:
        model: a local folder or a hub id; the bundled model needs no download.
        device: auto, cpu, cuda, cuda:1, ...
        dtype: auto is float32 on the CPU, else the checkpoint's own.
        attn: attention backend: sdpa, eager, flash_attention_2, ...
        clip: for cdpruner and trim: a local folder or a hub id of the CLIP model that the vision tower was made from.
    """

    model: str = "bundled"
    device: str = "auto"
    dtype: Precision = "auto"
    attn: str = "sdpa"
    clip: str | None = None


@Parameter(name="*", group="Model")
@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Say how the model answers.

    Attributes:
        positions: position ids of kept tokens; default is what each strategy's authors do.
        max_new_tokens: length limit of an answer.
    """

    positions: Literal["original", "compact", "default"] = "default"
    max_new_tokens: int = 16


@Parameter(name="*", group="Data")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Say which images and questions are used.

    Attributes:
        data: a folder with images and data.jsonl; without it the bundled scenes.
        count: number of questions or images; without it a number that suits the command, or all of --data.
        allow_outside: --data may name images outside of its folder, which is refused otherwise.
    """

    data: str | None = None
    count: int | None = None
    allow_outside: Flag = False


def remember(words: list[str]) -> None:
    """Keep the command line, which reports repeat."""
    _given[:] = words


def command_line() -> str:
    """Give the command line as a shell reads it."""
    from tokenprune.evaluate.report import shell_line

    return shell_line(_given)


def check_counts(**values: int | None) -> None:
    """Check numbers that must be 1 or more.

    Raises:
        ValueError: names the option and its value.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")


def load_model(options: ModelOptions) -> "LoadedModel":
    """Load the model that the options ask for, without the noise of loading."""
    # Ids in the prompt are made once and used by one thread; forking tokenizers only warn.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    from tokenprune.evaluate.loading import load

    return load(options.model, device=options.device, dtype=options.dtype, attention=options.attn, clip=options.clip)


def read_samples(options: DataOptions) -> "list[Sample] | None":
    """Read the samples of --data, checked; None for the bundled scenes."""
    if options.data is None:
        return None
    from tokenprune.evaluate.folder import read_folder

    folder = Path(options.data).expanduser()
    return read_folder(folder, count=options.count, allow_outside=options.allow_outside)


def position_policy(options: AnswerOptions) -> "Positions | None":
    """Give the position policy, None for each strategy's own."""
    return None if options.positions == "default" else options.positions
