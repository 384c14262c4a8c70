"""`tokenprune select`: one image, one question, one strategy; what is kept and what it does to the answer."""

import io
import json as json_module
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from tokenprune.cli.console import make_console
from tokenprune.cli.options import (
    AnswerOptions,
    Flag,
    JsonFlag,
    ModelOptions,
    check_counts,
    load_model,
    position_policy,
)

app = App(name="select")


@app.default
def select(
    image: Annotated[Path, Parameter(name="IMAGE")],
    /,
    *,
    question: str,
    strategy: str = "trim_tokenator(keep=0.111)",
    out: Path | None = None,
    overwrite: Flag = False,
    model: ModelOptions = ModelOptions(),
    answers: AnswerOptions = AnswerOptions(),
    json: JsonFlag = False,
) -> int:
    """Prune one image: write the image with dropped tokens faded, and print both answers.

    Args:
        image: a picture file.
        question: the question put to the model.
        strategy: for example "mi_alignment(keep=0.8) >> greedy_repmax(keep=64)".
        out: picture to write (default: IMAGE's name with .kept.png).
        overwrite: --out may be a file that is there, which is refused otherwise.
    """
    from tokenprune.core.text import parse
    from tokenprune.evaluate.samples import Sample, open_image

    check_counts(max_new_tokens=answers.max_new_tokens)
    if not image.is_file():
        raise ValueError(f"the image {image} does not exist")
    open_image(image)
    chosen = parse(strategy)
    file = output_file(image, out, overwrite=overwrite)
    sample = Sample(id="image", images=(image,), question=question, answers=("",))
    loaded = load_model(model)
    from tokenprune.evaluate.kept_tokens import draw_kept
    from tokenprune.evaluate.run_folder import write_atomically
    from tokenprune.evaluate.runner import Runner

    runner = Runner(loaded, [sample], 1, max_new_tokens=answers.max_new_tokens, positions=position_policy(answers))
    runner.check([chosen])
    runner.prepare()
    (dense,), _ = runner.run_batch(runner.batches[0], None)
    (pruned,), seconds = runner.run_batch(runner.batches[0], chosen)
    kept = pruned["images"][0]
    picture = draw_kept(runner, sample, kept, merged=chosen.yields == "merged")
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format=Image.registered_extensions()[file.suffix.lower()])
    write_atomically(file, stream.getvalue())
    if json:
        found = {
            "strategy": repr(chosen),
            "tokens_in": kept["tokens_in"],
            "tokens_out": kept["tokens_out"],
            "indices": kept["indices"],
            "selection_seconds": seconds["selection"],
            "dense": dense["answer"],
            "pruned": pruned["answer"],
            "picture": str(file),
        }
        print(json_module.dumps(found, indent=2, ensure_ascii=False))
        return 0
    console = make_console()
    share = kept["tokens_out"] / kept["tokens_in"]
    summary = [
        f"strategy   {chosen!r}",
        f"kept       {kept['tokens_out']} of {kept['tokens_in']} visual tokens ({share:.1%}), "
        f"chosen in {1000 * (seconds['selection'] or 0):.1f} ms",
        f"tokens     {_brief(kept['indices'])}",
        f"dense      {dense['answer']}",
        f"pruned     {pruned['answer']}",
        f"wrote      {file}",
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
