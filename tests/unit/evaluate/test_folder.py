import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluate.tiny import tiny_image, write_folder
from tokenprune.evaluate.folder import read_folder
from tokenprune.evaluate.samples import Sample, check_samples, image_digest, open_image, samples_digest

GOOD: dict[str, Any] = {"id": "1", "image": "0.png", "question": "what?", "answer": "cat"}


def write(folder: Path, *entries: object) -> Path:
    folder.mkdir(exist_ok=True)
    tiny_image(0).save(folder / "0.png")
    tiny_image(1).save(folder / "1.png")
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder


def test_reads_single_and_several_images_and_answers(tmp_path: Path) -> None:
    several = {"id": 2, "images": ["0.png", "1.png"], "question": "same?", "answers": ["yes", "yeah"], "kind": "pair"}
    first, second = read_folder(write(tmp_path, GOOD, "", several))
    assert first == Sample(id="1", images=(tmp_path / "0.png",), question="what?", answers=("cat",))
    assert second.id == "2"
    assert second.answers == ("yes", "yeah")
    assert second.images == (tmp_path / "0.png", tmp_path / "1.png")
    assert second.kind == "pair"


def test_reads_the_file_itself_with_a_byte_order_mark_and_odd_line_separators(tmp_path: Path) -> None:
    folder = write(tmp_path, json.dumps({**GOOD, "question": "a\u2028b"}, ensure_ascii=False))
    file = folder / "data.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_folder(file)[0].question == "a\u2028b"


def test_count_reads_the_first_ones(tmp_path: Path) -> None:
    assert [sample.id for sample in read_folder(write_folder(tmp_path, 4), count=2)] == ["0", "1"]
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        read_folder(tmp_path, count=0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{oops", r"line 2: no valid JSON: .* \(column 2\)"),
        ("[1]", "line 2: must be a JSON object"),
        ({**GOOD, "id": ""}, "line 2: id must be a text that is not empty, got ''"),
        ({**GOOD, "id": True}, "line 2: id must be a text"),
        ({**GOOD, "id": "0"}, "line 2: the id '0' was used in line 1"),
        ({"id": "1", "image": "0.png", "answer": "x"}, "line 2: question must be a text that is not empty, got None"),
        ({**GOOD, "kind": 3}, "line 2: kind must be a text"),
        ({**GOOD, "images": ["0.png"]}, "line 2: give either 'image' or 'images', got both"),
        ({"id": "1", "question": "q", "answer": "a"}, "line 2: give either 'image' or 'images', got neither"),
        ({"id": "1", "image": "0.png", "question": "q"}, "line 2: give either 'answer' or 'answers', got neither"),
        ({**GOOD, "image": ["0.png"]}, "line 2: image must hold one or more texts"),
        ({"id": "1", "images": [], "question": "q", "answer": "a"}, "line 2: images must hold one or more"),
        ({**GOOD, "image": "no.png"}, r"line 2: the image .*no\.png does not exist"),
        ({**GOOD, "anser": "a"}, "line 2: unknown field 'anser'"),
    ],
)
def test_errors_name_the_line(entry: object, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {**GOOD, "id": "0"}, entry)
    with pytest.raises(ValueError, match=message):
        read_folder(folder)


def test_missing_file_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/data\.jsonl does not exist; a data set is a folder with"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data\.jsonl: there are no samples"):
        read_folder(write(tmp_path, ""))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_folder(tmp_path)


def test_unreadable_and_truncated_images_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD)
    (folder / "0.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*0\.png"):
        read_folder(folder)
    tiny_image(0).resize((200, 200)).save(folder / "0.png")
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"cannot read the image .*0\.png"):
        read_folder(folder)


def test_digest_sees_questions_answers_order_and_pixels(tmp_path: Path) -> None:
    samples = read_folder(write_folder(tmp_path, 3))
    base = samples_digest(samples)
    assert base == samples_digest(read_folder(tmp_path))
    assert base != samples_digest(samples[::-1])
    tiny_image(99).save(tmp_path / "0.png")
    assert base != samples_digest(read_folder(tmp_path))


def test_equal_pictures_have_equal_digests() -> None:
    assert image_digest(tiny_image(3)) == image_digest(tiny_image(3)) != image_digest(tiny_image(4))


def test_pictures_become_rgb(tmp_path: Path) -> None:
    tiny_image(0).convert("L").save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").mode == "RGB"


def test_samples_check_themselves() -> None:
    image = tiny_image(0)
    with pytest.raises(ValueError, match="Sample 'a': images is empty"):
        Sample(id="a", images=(), question="q", answers=("x",))
    with pytest.raises(ValueError, match="Sample 'a': answers is empty"):
        Sample(id="a", images=(image,), question="q", answers=())
    with pytest.raises(ValueError, match="Sample 'a': question is empty"):
        Sample(id="a", images=(image,), question=" ", answers=("x",))
    twice = Sample(id="a", images=(image,), question="q", answers=("x",))
    with pytest.raises(ValueError, match="mine: the id 'a' occurs twice"):
        check_samples([twice, twice], source="mine")
