from typing import Any

import pytest

from benchmarks.bundled_model.packing import PREFIX, pack
from tokenprune.bundled import TOKENS_PER_IMAGE, load_processor, load_scenes, prompt
from tokenprune.bundled.cards import GRID
from tokenprune.bundled.tokenizer import build_processor, build_tokenizer
from tokenprune.bundled.vocabulary import ASSISTANT, COLOURS, DIGITS, IDS, IMAGE, REGIONS, TEMPLATES, UNK, WORDS, encode

transformers = pytest.importorskip("transformers")


def every_question() -> list[str]:
    fields = {"digit": DIGITS, "colour": tuple(COLOURS), "region": REGIONS}
    texts = []
    for template in TEMPLATES.values():
        slot = next((name for name in fields if "{" + name + "}" in template), None)
        texts += [template] if slot is None else [template.format(**{slot: word}) for word in fields[slot]]
    return texts


def test_every_question_and_answer_is_known_and_survives_a_round_trip() -> None:
    tokenizer = build_tokenizer()
    for text in [*every_question(), *DIGITS, *COLOURS, *REGIONS, "yes", "no"]:
        ids = tokenizer(text)["input_ids"]
        assert IDS[UNK] not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids[1:] == encode(text)


def test_words_are_unique_and_all_reachable() -> None:
    tokenizer = build_tokenizer()
    assert len(set(WORDS)) == len(WORDS)
    assert [tokenizer.convert_tokens_to_ids(word) for word in WORDS] == list(range(len(WORDS)))


def test_unknown_words_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['elephant'\]"):
        encode("is there a elephant ?")


def test_case_and_spacing_do_not_matter() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer("Is there a seven?")["input_ids"] == tokenizer("is there a seven ?")["input_ids"]


def test_saved_processor_equals_the_built_one() -> None:
    scene = load_scenes(count=1)[0]
    text = prompt(scene.questions[0].text)
    saved, built = (
        processor(images=scene.image, text=text, return_tensors="pt")
        for processor in (load_processor(), build_processor())
    )
    assert saved["input_ids"].equal(built["input_ids"])
    assert saved["pixel_values"].equal(built["pixel_values"])


def test_one_image_is_exactly_256_tokens_on_a_square_grid() -> None:
    scene = load_scenes(count=1)[0]
    inputs = load_processor()(images=scene.image, text=prompt("is there a seven ?"), return_tensors="pt")
    assert int((inputs["input_ids"] == IDS[IMAGE]).sum()) == TOKENS_PER_IMAGE == GRID * GRID
    assert inputs["pixel_values"].shape == (1, 3, 128, 128)


def test_chat_template_renders_the_prompt() -> None:
    processor = load_processor()
    content = [{"type": "image"}, {"type": "text", "text": "is there a seven ?"}]
    chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == prompt("is there a seven ?")
    answered: list[dict[str, Any]] = [*chat, {"role": "assistant", "content": "yes"}]
    assert processor.apply_chat_template(answered) == f"{prompt('is there a seven ?')} yes </s>"


def test_padding_is_on_the_left() -> None:
    ids = load_processor().tokenizer(["yes", "is there a seven ?"], padding=True)["input_ids"]
    assert ids[0][0] == IDS["<pad>"]
    assert ids[0][-1] == IDS["yes"]


def test_packed_training_rows_are_what_the_tokenizer_writes() -> None:
    scene = load_scenes(count=1)[0]
    packed = pack([scene.questions])
    processor = load_processor()
    for index, question in enumerate(scene.questions):
        whole = processor.tokenizer(prompt(question.text))["input_ids"]
        cut = int(packed.last[0, index]) + 1
        assert whole == [*PREFIX, IDS[IMAGE], *packed.ids[0, index, :cut].tolist()]
        assert int(packed.answers[0, index]) == IDS[question.answer]
    assert encode(ASSISTANT) == packed.ids[0, 0, int(packed.last[0, 0]) - 1 : int(packed.last[0, 0]) + 1].tolist()
