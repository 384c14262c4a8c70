"""`tokenprune select`: one image, one question, one strategy; what is kept and what it does to the answer."""

import argparse
import io
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
    parser.add_argument("--overwrite", action="store_true", help="--out may be a file that is there (default: refused)")
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
    out = output_file(args.image, args.out, overwrite=args.overwrite)
    sample = Sample(id="image", images=(args.image,), question=args.question, answers=("",))
    loaded = load_model(args)
    from tokenprune.evaluate.kept_tokens import draw_kept
    from tokenprune.evaluate.run_folder import write_atomically
    from tokenprune.evaluate.runner import Runner

    runner = Runner(loaded, [sample], 1, max_new_tokens=args.max_new_tokens, positions=position_policy(args))
    runner.check([strategy])
    runner.prepare()
    (dense,), _ = runner.run_batch(runner.batches[0], None)
    (pruned,), seconds = runner.run_batch(runner.batches[0], strategy)
    kept = pruned["images"][0]
    picture = draw_kept(runner, sample, kept, merged=strategy.yields == "merged")
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format=Image.registered_extensions()[out.suffix.lower()])
    write_atomically(out, stream.getvalue())
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


def output_file(image: Path, out: Path | None, *, overwrite: bool) -> Path:
    """Give the file to write, after checking that it can be written and destroys nothing.

    Args:
        image: the picture that is read.
        out: the file that was asked for; None for the picture's name with `.kept.png`, which is replaced when this
            command ran before.
        overwrite: whether `out` may be there already; the picture itself never is overwritten.

    Raises:
        ValueError: names the file and the way out.
    """
    file = out or image.with_suffix(".kept.png")
    if not file.parent.is_dir():
        raise ValueError(f"--out {file}: the folder {file.parent} does not exist")
    if file.is_dir():
        raise ValueError(f"--out {file} is a folder; name a file in it")
    if file.exists() and file.samefile(image):
        raise ValueError(f"--out {file} is the image itself; choose another name")
    if out is None:
        _check_stem(image, file)
    elif file.exists() and not overwrite:
        raise ValueError(f"--out {file} exists; choose another name, or give --overwrite")
    _check_extension(file)
    return file


def _check_stem(image: Path, file: Path) -> None:
    """Raise when another picture of the folder would be drawn into the same file."""
    from PIL import Image

    known = Image.registered_extensions()
    for other in sorted(image.parent.iterdir()):
        if other.stem == image.stem and other.suffix.lower() in known and not other.samefile(image):
            raise ValueError(
                f"{other.name} and {image.name} would both be drawn into {file.name}; choose a name with --out"
            )


def _check_extension(file: Path) -> None:
    """Raise unless Pillow writes pictures with this extension; tried, because some formats only read."""
    from PIL import Image

    known = Image.registered_extensions()
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), format=known[file.suffix.lower()])
    except Exception as error:
        raise ValueError(
            f"--out {file}: no picture can be written with the extension {file.suffix!r}; use .png, .jpg or .webp"
        ) from error


def _brief(indices: list[int], most: int = 24) -> str:
    shown = " ".join(map(str, indices[:most]))
    return shown if len(indices) <= most else f"{shown} ... {indices[-1]}"
