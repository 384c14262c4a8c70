"""`Sample`: one question about one or more images, with the answers that count as right."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

ImageSource: TypeAlias = "Path | Image.Image"
"""A picture on disk, opened when needed, or one in memory."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question of a data set.

    Attributes:
        id: unique in its data set.
        images: at least one; a path is opened when it is needed.
        question: the text put to the model after the images, without chat markup.
        answers: every answer that counts as right, at least one.
        kind: a group for accuracy by kind; "" where the data set has none.

    Raises:
        ValueError: when there is no image, no answer, or the question is empty.
    """

    id: str
    images: tuple[ImageSource, ...]
    question: str
    answers: tuple[str, ...]
    kind: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "question"):
            if not getattr(self, name).strip():
                raise ValueError(f"Sample {self.id!r}: {name} is empty; every sample needs one")
        if not self.images:
            raise ValueError(
                f"Sample {self.id!r}: images is empty; visual tokens are what is pruned, so give one or more"
            )
        if not self.answers:
            raise ValueError(f"Sample {self.id!r}: answers is empty; give at least one right answer")


def open_image(source: ImageSource) -> "Image.Image":
    """The picture, fully decoded, as RGB.

    Args:
        source: a path or a picture in memory.

    Raises:
        ValueError: when the file cannot be opened or decoded; the message names it.
    """
    from PIL import Image

    try:
        if not isinstance(source, Path):
            return source.convert("RGB")
        with Image.open(source) as image:
            return image.convert("RGB")
    # Pillow reports broken files through many classes: OSError, SyntaxError (PNG), DecompressionBombError.
    except Exception as error:
        raise ValueError(f"cannot read the image {source}: {error}; replace the file or take its line out") from error


def image_digest(source: ImageSource) -> str:
    """SHA-256 of a picture's file, or of its pixels when it is in memory: equal pictures are encoded only once."""
    digest = hashlib.sha256()
    if isinstance(source, Path):
        digest.update(source.read_bytes())
    else:
        digest.update(f"{source.mode} {source.size} ".encode())
        digest.update(source.tobytes())
    return digest.hexdigest()


def check_samples(samples: Sequence[Sample], *, source: str) -> None:
    """Raise unless there are samples, their ids differ and every picture can be decoded.

    Args:
        samples: the data set.
        source: what to call it in messages.

    Raises:
        ValueError: names the first id or picture that is wrong.
    """
    if not samples:
        raise ValueError(f"{source}: there are no samples; give at least one question")
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"{source}: the id {sample.id!r} occurs twice; ids must be unique")
        seen.add(sample.id)
    for path in dict.fromkeys(image for sample in samples for image in sample.images if isinstance(image, Path)):
        open_image(path)


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over everything that results depend on: ids, pictures, questions, right answers, kinds, in order."""
    digest = hashlib.sha256()
    known: dict[ImageSource | int, str] = {}
    for sample in samples:
        pictures = []
        for image in sample.images:
            name = image if isinstance(image, Path) else id(image)
            if name not in known:
                known[name] = image_digest(image)
            pictures.append(known[name])
        digest.update(repr((sample.id, pictures, sample.question, sample.answers, sample.kind)).encode())
    return digest.hexdigest()
