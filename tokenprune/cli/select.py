"""`tokenprune select`: one image, one question, one strategy; what is kept and what it does to the answer."""

import argparse
from pathlib import Path
from typing import Any

from tokenprune.cli.options import add_model_options, load_model, make_console, position_policy


def add_parser(subparsers: Any) -> None:  # noqa: ANN401
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "select",
        help="prune one image, draw the kept tokens, answer a question with and without pruning",
        description="Prune one image: writes the image with dropped tokens faded, and prints both answers.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a picture file")
    parser.add_argument("--question", required=True, metavar="TEXT", help="the question put to the model")
    parser.add_argument(
        "--strategy",
        default="trim_tokenator(keep=0.111)",
        metavar="TEXT",
        help='for example "mi_alignment(keep=0.8) >> greedy_repmax(keep=64)" (default: trim_tokenator(keep=0.111))',
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="picture to write (default: IMAGE's name with .kept.png)"
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Select, draw, answer."""
    from tokenprune.core.text import parse
    from tokenprune.evaluate.samples import Sample, open_image

    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be 1 or more, got {args.max_new_tokens}")
    if not args.image.is_file():
        raise ValueError(f"the image {args.image} does not exist")
    open_image(args.image)
    strategy = parse(args.strategy)
    out = args.out or args.image.with_suffix(".kept.png")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist")
    sample = Sample(id="image", images=(args.image,), question=args.question, answers=("",))
    loaded = load_model(args)
    from tokenprune.evaluate.kept_tokens import draw_kept
    from tokenprune.evaluate.runner import Runner

    runner = Runner(loaded, [sample], 1, max_new_tokens=args.max_new_tokens, positions=position_policy(args))
    runner.check([strategy])
    runner.prepare()
    (dense,), _ = runner.run_batch(runner.batches[0], None)
    (pruned,), seconds = runner.run_batch(runner.batches[0], strategy)
    kept = pruned["images"][0]
    picture = draw_kept(runner, sample, kept, merged=strategy.yields == "merged")
    from PIL import Image

    Image.fromarray(picture).save(out)
    console = make_console()
    share = kept["tokens_out"] / kept["tokens_in"]
    summary = [
        f"strategy   {strategy!r}",
        f"kept       {kept['tokens_out']} of {kept['tokens_in']} visual tokens ({share:.1%}), "
        f"chosen in {1000 * (seconds['selection'] or 0):.1f} ms",
        f"tokens     {_brief(kept['indices'])}",
        f"dense      {dense['answer']}",
        f"pruned     {pruned['answer']}",
        f"wrote      {out}",
    ]
    for line in summary:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _brief(indices: list[int], most: int = 24) -> str:
    shown = " ".join(map(str, indices[:most]))
    return shown if len(indices) <= most else f"{shown} ... {indices[-1]}"
