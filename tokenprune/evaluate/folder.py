"""A data set as a folder: `data.jsonl` and the images that it names."""

from pathlib import Path

from tokenprune.evaluate.samples import Sample, check_samples
from tokenprune.strict_json import inside, parse_json, shorten

DATA_FILE = "data.jsonl"
_FIELDS = {"id", "image", "images", "question", "answer", "answers", "kind"}


def read_folder(folder: str | Path, *, count: int | None = None, allow_outside: bool = False) -> list[Sample]:
    """Read a data set and check all of it, pictures included, before any model runs.

    The folder holds `data.jsonl`, one JSON object per line, and the pictures, named relative to the folder:

        {"id": "1", "image": "images/cat.jpg", "question": "What animal is this?", "answer": "cat"}
        {"id": "2", "images": ["a.png", "b.png"], "question": "Same hue?", "answers": ["yes", "yeah"], "kind": "pair"}

    `id`, one of `image` and `images`, `question`, and one of `answer` and `answers` are required; `kind` is not. The
    question is put to the model as it stands: instructions such as "Answer in one word." belong in it. Empty lines are
    skipped.

    Args:
        folder: the folder, or the path of the `.jsonl` file in it.
        count: read only the first so many samples; None reads all.
        allow_outside: also read pictures that lie outside of the folder: absolute names, "../", and symbolic links that
            lead out of it. Without it they are refused, so that a data set from somewhere else reads no other files.

    Returns:
        The samples in the order of the file.

    Raises:
        ValueError: names the file, the line and what is wrong with it, or the unreadable picture.
    """
    file = _data_file(Path(folder))
    if count is not None and count < 1:
        raise ValueError(f"read_folder: count must be 1 or more, got {count}")
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"read_folder: {file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"read_folder: cannot read {file}: {error.strerror or error}") from None
    # Not splitlines: JSON strings may hold U+2028 and friends, which are no line ends in a JSON Lines file.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if count is not None and len(samples) == count:
            break
        where = f"{file}, line {number}"
        sample = parse_line(line, folder=file.parent, where=where, allow_outside=allow_outside)
        if sample.id in lines:
            raise ValueError(f"{where}: the id {sample.id!r} was used in line {lines[sample.id]}; ids must be unique")
        lines[sample.id] = number
        samples.append(sample)
    check_samples(samples, source=str(file))
    return samples


def _data_file(path: Path) -> Path:
    """The `.jsonl` file that a path means: itself, or the one in the folder."""
    if path.is_file() and path.suffix != ".jsonl":
        raise ValueError(
            f"read_folder: {path} is a single file; a data set is a folder with {DATA_FILE} and its images, or the "
            "path of a .jsonl file"
        )
    file = path if path.suffix == ".jsonl" and not path.is_dir() else path / DATA_FILE
    if not file.is_file():
        raise ValueError(f"read_folder: {file} does not exist; a data set is a folder with {DATA_FILE} and its images")
    return file


def parse_line(line: str, *, folder: Path, where: str, allow_outside: bool = False) -> Sample:
    """Read one line of `data.jsonl` as a `Sample`.

    Args:
        line: the JSON text.
        folder: what image names are relative to.
        where: file and line, for messages.
        allow_outside: whether images may lie outside of the folder.

    Raises:
        ValueError: starts with `where`.
    """
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{where}: {_with_way_out(str(error), line)}") from None
    if not isinstance(entry, dict):
        hint = f"; {_ONE_PER_LINE}" if isinstance(entry, list) else ""
        raise ValueError(
            f'{where}: must be a JSON object like {{"id": ..., "image": ...}}, got {type(entry).__name__}{hint}'
        )
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise ValueError(f"{where}: unknown field {shorten(unknown[0])}; the fields are {', '.join(sorted(_FIELDS))}")
    identifier = entry.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    question, kind = entry.get("question"), entry.get("kind", "")
    for name, value in (("id", identifier), ("question", question), ("kind", kind)):
        if not isinstance(value, str) or (name != "kind" and not value.strip()):
            raise ValueError(f"{where}: {name} must be a text that is not empty, got {shorten(value)}")
    names = _one_or_more(entry, "image", "images", where)
    images = tuple(_image(name, folder, where, allow_outside=allow_outside) for name in names)
    answers = _one_or_more(entry, "answer", "answers", where)
    try:
        return Sample(id=str(identifier), images=images, question=str(question), answers=answers, kind=str(kind))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


_ONE_PER_LINE = "write one object per line, not one list or one object over several lines (jq -c '.[]' does it)"


def _with_way_out(error: str, line: str) -> str:
    """The error, with what to do when the file is one JSON value over several lines."""
    return f"{error}; {_ONE_PER_LINE}" if line.strip() in ("[", "{", "[{") else error


def _image(name: str, folder: Path, where: str, *, allow_outside: bool) -> Path:
    try:
        image = folder / name if allow_outside else inside(folder, name)
        exists = image.is_file()
    except OSError as error:
        raise ValueError(f"{where}: the image {shorten(name)} cannot be used: {error.strerror}") from None
    except ValueError as error:
        outside = "lies outside" in str(error)
        way = "; copy it into the folder, or allow it (--allow-outside, read_folder(allow_outside=True))"
        raise ValueError(f"{where}: the image {error}{way if outside else ''}") from None
    if not exists:
        raise ValueError(f"{where}: the image {image} does not exist; names are relative to {folder}")
    return image


def _one_or_more(entry: dict[str, object], single: str, several: str, where: str) -> tuple[str, ...]:
    if (single in entry) == (several in entry):
        raise ValueError(
            f"{where}: give either {single!r} or {several!r}, got {'both' if single in entry else 'neither'}"
        )
    value = [entry[single]] if single in entry else entry[several]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item.strip() for item in value):
        name = single if single in entry else several
        raise ValueError(f"{where}: {name} must hold one or more texts that are not empty, got {shorten(entry[name])}")
    return tuple(value)
