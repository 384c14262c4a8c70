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
