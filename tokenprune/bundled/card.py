"""The numbers of the model card: ``python -m tokenprune.bundled.card`` measures them again and prints the table.

Accuracy is measured as a user would: processor, ``generate``, and the decoded text compared with the answer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tokenprune.bundled import (
    COVERAGE,
    KINDS,
    LOOKUPS,
    MODEL_DIR,
    Question,
    Scene,
    load_model,
    load_processor,
    load_scenes,
    prompt,
)
from tokenprune.bundled.cards import PATCH
from tokenprune.bundled.vocabulary import IMAGE

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

_Z: Final = 1.959963984540054


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion.

    Args:
        right: successes.
        total: trials, at least 1.

    >>> low, high = wilson(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    share, square = right / total, _Z * _Z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = _Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return centre - half, centre + half


@torch.inference_mode()
def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: Sequence[Scene],
    *,
    image: bool = True,
    batch: int = 8,
) -> list[tuple[Question, str]]:
    """Let the model answer all questions about some scenes.

    Args:
        model: the model.
        processor: its processor.
        scenes: the scenes.
        image: False leaves the image and its placeholder out of the prompt.
        batch: scenes per call of ``generate``.

    Returns:
        Each question with the text that was generated, without special tokens.
    """
    results: list[tuple[Question, str]] = []
    for start in range(0, len(scenes), batch):
        pairs = [(scene, question) for scene in scenes[start : start + batch] for question in scene.questions]
        prompts = [prompt(question.text) for _, question in pairs]
        if image:
            inputs = processor(
                images=[scene.image for scene, _ in pairs], text=prompts, padding=True, return_tensors="pt"
            )
        else:
            bare = [text.replace(f"{IMAGE} ", "") for text in prompts]
            inputs = processor.tokenizer(bare, padding=True, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**inputs)  # type: ignore[misc]  # transformers types self as a protocol of its own
        texts = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        results.extend((question, text.strip()) for (_, question), text in zip(pairs, texts, strict=True))
    return results


def accuracy(results: Sequence[tuple[Question, str]]) -> dict[str, dict[str, float]]:
    """Accuracy overall, over lookups, over coverage kinds and for each kind, with its interval.

    Chance is what always giving the most frequent answer to the very wording of the question would reach on these
    questions: an upper estimate of what can be had without the image.
    """
    groups = {"overall": KINDS, "lookups": LOOKUPS, "coverage": COVERAGE, **{kind: (kind,) for kind in KINDS}}
    table: dict[str, dict[str, float]] = {}
    for name, kinds in groups.items():
        own = [(question, text) for question, text in results if question.kind in kinds]
        right = sum(text == question.answer for question, text in own)
        low, high = wilson(right, len(own))
        common = 0
        for kind in kinds:
            answers = [question.answer for question, _ in own if question.kind == kind]
            common += max(answers.count(word) for word in set(answers))
        table[name] = {
            "questions": len(own),
            "accuracy": right / len(own),
            "low": low,
            "high": high,
            "majority": common / len(own),
        }
    return table


@torch.inference_mode()
def norms(model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: Sequence[Scene]) -> dict[str, float]:
    """How visual tokens lie relative to the word embeddings of the questions.

    The alignment score of a visual token v is ``-||v - m||^2 = -||v||^2 + 2 v.m - ||m||^2``, where m is the mean word
    embedding of the question. ``norm_share`` is the squared correlation, over the 256 tokens of an image, of the score
    with ``||v||^2``: the share of the score's variance that norms alone explain. Averages over scenes and questions.
    """
    images = processor(images=[scene.image for scene in scenes], text=[IMAGE] * len(scenes), return_tensors="pt")
    visual = torch.stack(list(model.model.get_image_features(images["pixel_values"]).pooler_output)).float()
    embed = model.get_input_embeddings()
    ratios, shares, spreads, words = [], [], [], []
    for tokens, scene in zip(visual, scenes, strict=True):
        square = tokens.square().sum(-1)
        for question in scene.questions:
            ids = processor.tokenizer(question.text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
            text = embed(ids).float()
            score = -(tokens - text.mean(0)).square().sum(-1)
            shares.append(torch.corrcoef(torch.stack([score, square]))[0, 1].square())
            ratios.append(square.sqrt().mean() / text.norm(dim=-1).mean())
            words.append(text.norm(dim=-1).mean())
        spreads.append(square.sqrt().std() / square.sqrt().mean())
    return {
        "visual_norm": float(visual.norm(dim=-1).mean()),
        "text_norm": float(torch.stack(words).mean()),
        "visual_to_text_norm": float(torch.stack(ratios).mean()),
        "visual_norm_variation": float(torch.stack(spreads).mean()),
        "norm_share": float(torch.stack(shares).mean()),
    }


@torch.inference_mode()
def cls_attention(processor: LlavaProcessor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of the CLS token's attention to patches that falls on cards, beside the share of patches that are cards."""
    tower = load_model(attn_implementation="eager").model.vision_tower
    pixels = processor.image_processor([scene.image for scene in scenes], return_tensors="pt")["pixel_values"]
    layers = tower(pixels, output_attentions=True).attentions
    on_card = torch.zeros(len(scenes), pixels.shape[-1] ** 2 // PATCH**2)
    for row, scene in enumerate(scenes):
        on_card[row, [patch for card in scene.cards for patch in card.patches]] = 1.0
    figures = {"card_area": float(on_card.mean())}
    for name, layer in (("cls_attention_last", layers[-1]), ("cls_attention_last_but_one", layers[-2])):
        patches = layer[:, :, 0, 1:].mean(1)
        figures[name] = float(((patches * on_card).sum(-1) / patches.sum(-1)).mean())
    return figures


def measure(scenes: int, seed: int = 0, split: str = "test") -> dict[str, object]:
    """All numbers of the card, on ``scenes`` scenes of a split."""
    model, processor = load_model(), load_processor()
    drawn = load_scenes(split, count=scenes, seed=seed)
    return {
        "split": split,
        "scenes": scenes,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": (MODEL_DIR / "model.safetensors").stat().st_size,
        "dense": accuracy(answer(model, processor, drawn)),
        "text_only": accuracy(answer(model, processor, drawn, image=False)),
        "norms": {**norms(model, processor, drawn[:50]), **cls_attention(processor, drawn[:50])},
    }


def table(metrics: dict[str, object]) -> str:
    """The numbers as the Markdown tables of the card."""
    dense, blind, lengths = metrics["dense"], metrics["text_only"], metrics["norms"]
    if not (isinstance(dense, dict) and isinstance(blind, dict) and isinstance(lengths, dict)):
        raise TypeError("table: metrics must come from measure()")
    lines = [
        f"{metrics['scenes']} {metrics['split']} scenes, seed {metrics['seed']}.",
        "",
        "| questions | n | accuracy | 95% interval | without the image | most frequent answer |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in dense.items():
        lines.append(
            f"| {name} | {row['questions']} | {row['accuracy']:.3f} | {row['low']:.3f} to {row['high']:.3f} "
            f"| {blind[name]['accuracy']:.3f} | {row['majority']:.3f} |"
        )
    lines += ["", "| embeddings | value |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in lengths.items()]
    return "\n".join(lines)


def insert(card: str, numbers: str) -> str:
    """The card's text with the part between its two markers replaced.

    Args:
        card: Markdown with the lines ``<!-- numbers -->`` and ``<!-- end of numbers -->``.
        numbers: from ``table``.

    Raises:
        ValueError: a marker is missing.

    >>> insert("a <!-- numbers --> old <!-- end of numbers --> b", "new").split()
    ['a', '<!--', 'numbers', '-->', 'new', '<!--', 'end', 'of', 'numbers', '-->', 'b']
    """
    before, opening, rest = card.partition("<!-- numbers -->")
    _, closing, after = rest.partition("<!-- end of numbers -->")
    if not opening or not closing:
        raise ValueError("insert: card must hold the markers <!-- numbers --> and <!-- end of numbers -->")
    return f"{before}{opening}\n\n{numbers}\n\n{closing}{after}"


def main(arguments: list[str] | None = None) -> None:
    """Measure the numbers of the model card, print them, and write them to a JSON file and to the card beside it."""
    parser = argparse.ArgumentParser(prog="python -m tokenprune.bundled.card", description=main.__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="number of held-out scenes, 10 questions each")
    parser.add_argument("--seed", type=int, default=0, help="which series of scenes")
    parser.add_argument("--out", type=Path, default=MODEL_DIR / "metrics.json", help="JSON file to write")
    options = parser.parse_args(arguments)
    metrics = measure(options.scenes, options.seed)
    options.out.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    card = options.out.with_name("MODEL_CARD.md")
    if card.exists():
        card.write_text(insert(card.read_text(encoding="utf-8"), table(metrics)), encoding="utf-8")
    sys.stdout.write(table(metrics) + "\n")


if __name__ == "__main__":
    main()
