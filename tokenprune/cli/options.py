"""Options and small helpers that several subcommands share."""

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tokenprune.core.places import Positions
    from tokenprune.evaluate.loading import LoadedModel


def add_model_options(parser: argparse.ArgumentParser, *, answers: bool = True) -> None:
    """Options that say which model runs where, and unless `answers` is False how it answers."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="bundled",
        metavar="NAME",
        help="a local folder or a hub id (default: the bundled model)",
    )
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="default: float32 on the CPU, else the checkpoint's own",
    )
    group.add_argument(
        "--attn",
        default="sdpa",
        metavar="BACKEND",
        help="attention backend: sdpa (default), eager, flash_attention_2, ...",
    )
    group.add_argument(
        "--clip",
        metavar="NAME",
        help="for cdpruner and trim: a local folder or a hub id of the CLIP model that the vision tower was made from",
    )
    if not answers:
        return
    group.add_argument(
        "--positions",
        default="default",
        choices=("original", "compact", "default"),
        help="position ids of kept tokens (default: what each strategy's authors do)",
    )
    group.add_argument(
        "--max-new-tokens", type=int, default=16, metavar="N", help="length limit of an answer (default 16)"
    )


def load_model(args: argparse.Namespace) -> "LoadedModel":
    """The model that the options ask for, without the noise of loading."""
    # Ids in the prompt are made once and used by one thread; forking tokenizers only warn.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    from tokenprune.evaluate.loading import load

    return load(args.model, device=args.device, dtype=args.dtype, attention=args.attn, clip=args.clip)


def position_policy(args: argparse.Namespace) -> "Positions | None":
    """The position policy, None for each strategy's own."""
    return None if args.positions == "default" else args.positions


def make_console(*, least: int = 110) -> "Console":
    """A console; output that goes to a file or a pipe is not cut to 80 columns."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=max(console.width, least))
    return console
