"""The bundled scenes as samples."""

from tokenprune.evaluate.samples import Sample

DEFAULT_COUNT = 400
"""Questions of the default comparison: as many as keep it under three minutes on two processor cores."""


def bundled_samples(count: int = DEFAULT_COUNT, *, seed: int = 0) -> list[Sample]:
    """Questions about held-out scenes, one per scene so that samples are independent, every kind equally often.

    Args:
        count: number of questions, and of scenes.
        seed: which series of scenes.

    Raises:
        ValueError: when count is not positive.
        ImportError: when scikit-learn, which the scenes come from, is not installed.
    """
    from tokenprune.bundled import load_scenes

    if count < 1:
        raise ValueError(f"bundled_samples: count must be 1 or more, got {count}")
    samples = []
    for place, scene in enumerate(load_scenes(split="test", count=count, seed=seed)):
        question = scene.questions[place % len(scene.questions)]
        samples.append(
            Sample(
                id=f"{scene.id}-{question.kind}",
                images=(scene.image,),
                question=question.text,
                answers=(question.answer,),
                kind=question.kind,
            )
        )
    return samples


def second_questions(count: int, *, seed: int = 0) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each of the `bundled_samples`, by its id, another question about the same scene and its right answer.

    It is of another kind; over the samples every kind follows every other one equally often.

    Args:
        count: number of samples.
        seed: which series of scenes.
    """
    from tokenprune.bundled import load_scenes

    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for place, scene in enumerate(load_scenes(split="test", count=count, seed=seed)):
        kinds = len(scene.questions)
        first = scene.questions[place % kinds]
        other = scene.questions[(place + 1 + place // kinds % (kinds - 1)) % kinds]
        found[f"{scene.id}-{first.kind}"] = (other.text, (other.answer,))
    return found
