"""A data set as a folder: `data.jsonl` and the images that it names."""

import json
from pathlib import Path

from tokenprune.evaluate.samples import Sample, check_samples

DATA_FILE = "data.jsonl"
_FIELDS = {"id", "image", "images", "question", "answer", "answers", "kind"}


def read_folder(folder: str | Path, *, count: int | None = None) -> list[Sample]:
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

    Returns:
        The samples in the order of the file.

    Raises:
        ValueError: names the file, the line and what is wrong with it, or the unreadable picture.
    """
    path = Path(folder)
    file = path if path.suffix == ".jsonl" else path / DATA_FILE
    if not file.is_file():
        raise ValueError(f"read_folder: {file} does not exist; a data set is a folder with {DATA_FILE} and its images")
    if count is not None and count < 1:
        raise ValueError(f"read_folder: count must be 1 or more, got {count}")
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"read_folder: {file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    # Not splitlines: JSON strings may hold U+2028 and friends, which are no line ends in a JSON Lines file.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if count is not None and len(samples) == count:
            break
        sample = parse_line(line, folder=file.parent, where=f"{file}, line {number}")
        if sample.id in lines:
            raise ValueError(
                f"{file}, line {number}: the id {sample.id!r} was used in line {lines[sample.id]}; ids must be unique"
            )
        lines[sample.id] = number
        samples.append(sample)
    check_samples(samples, source=str(file))
    return samples


def parse_line(line: str, *, folder: Path, where: str) -> Sample:
    """One line of `data.jsonl` as a `Sample`.

    Args:
        line: the JSON text.
        folder: what image names are relative to.
        where: file and line, for messages.

    Raises:
        ValueError: starts with `where`.
    """
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(entry, dict):
        raise ValueError(f'{where}: must be a JSON object like {{"id": ..., "image": ...}}, got {type(entry).__name__}')
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(sorted(_FIELDS))}")
    identifier = entry.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    question, kind = entry.get("question"), entry.get("kind", "")
    for name, value in (("id", identifier), ("question", question), ("kind", kind)):
        if not isinstance(value, str) or (name != "kind" and not value.strip()):
            raise ValueError(f"{where}: {name} must be a text that is not empty, got {value!r}")
    images = tuple(folder / name for name in _one_or_more(entry, "image", "images", where))
    for image in images:
        if not image.is_file():
            raise ValueError(f"{where}: the image {image} does not exist; names are relative to {folder}")
    answers = _one_or_more(entry, "answer", "answers", where)
    return Sample(id=str(identifier), images=images, question=str(question), answers=answers, kind=str(kind))


def _one_or_more(entry: dict[str, object], single: str, several: str, where: str) -> tuple[str, ...]:
    if (single in entry) == (several in entry):
        raise ValueError(
            f"{where}: give either {single!r} or {several!r}, got {'both' if single in entry else 'neither'}"
        )
    value = [entry[single]] if single in entry else entry[several]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item.strip() for item in value):
        name = single if single in entry else several
        raise ValueError(f"{where}: {name} must hold one or more texts that are not empty, got {entry[name]!r}")
    return tuple(value)
