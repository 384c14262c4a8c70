"""`Sample`: one question about one or more images, with the answers that count as right."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenprune.evaluate.images import ImageSource, image_digest, open_image

__all__ = ["ImageSource", "Sample", "check_samples", "image_digest", "open_image", "samples_digest"]

_PLACEHOLDERS = re.compile(
    r"<image>|<video>|<image_soft_token>|<(?:start|end)_of_image>|<\|(?:image|video)_pad\|>|<\|vision_(?:start|end|pad)\|>"
    r"|<IMG_CONTEXT>|\[IMG(?:_BREAK|_END)?\]|<fake_token_around_image>|<global-img>|<row_\d+_col_\d+>"
)
"""What processors put images at, over all families; in a question it would take the place of one."""


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
        ValueError: when there is no image, no answer, the question is empty, or it holds a placeholder such as
            "<image>": images come before the question by themselves.
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
        found = _PLACEHOLDERS.search(self.question)
        if found is not None:
            raise ValueError(
                f"Sample {self.id!r}: the question holds {found[0]!r}, at which processors put an image; images come "
                "before the question by themselves, so take it out"
            )
        if not self.images:
            raise ValueError(
                f"Sample {self.id!r}: images is empty; visual tokens are what is pruned, so give one or more"
            )
        if not self.answers:
            raise ValueError(f"Sample {self.id!r}: answers is empty; give at least one right answer")


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
