"""Commands destroy nothing and mix nothing: what would be lost is refused before a model runs or a minute is spent."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tests.unit.evaluate.tiny import tiny_image, tiny_loaded
from tokenprune.cli.main import main
from tokenprune.cli.token_files import read_tokens
from tokenprune.evaluate.report import Report, read_manifest

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tiny_image(0).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def refused(capsys: pytest.CaptureFixture[str], image: Path, *options: str) -> str:
    """The error of `select` with a model that does not exist: the refusal comes before any model is looked for."""
    assert main(["select", str(image), "--question", "w12", "--model", str(image.parent / "no model"), *options]) == 2
    error = capsys.readouterr().err
    assert "no model" not in error
    return error


def test_select_does_not_write_onto_its_image(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = image.read_bytes()
    (image.parent / "link.png").symlink_to(image)
    os.link(image, image.parent / "hard.png")
    monkeypatch.chdir(image.parent)
    (image.parent / "sub").mkdir()
    for out in (str(image), "scene.png", "./sub/../scene.png", "link.png", "hard.png"):
        for options in ([], ["--overwrite"]):
            assert "is the image itself; choose another name" in refused(capsys, image, "--out", out, *options)
    assert image.read_bytes() == before


def test_select_does_not_write_onto_another_file(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = image.parent / "mine.png"
    other.write_text("mine")
    assert "mine.png exists; choose another name, or give --overwrite" in refused(capsys, image, "--out", str(other))
    assert "is a folder" in refused(capsys, image, "--out", str(image.parent))
    assert other.read_text() == "mine"


@pytest.mark.parametrize("name", ["x.txt", "x", "x.pgn", "x.hdf5", "x.", ".png", "x.eps2", "x.ani"])
def test_select_knows_what_it_can_write_before_it_runs(
    name: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, image, "--out", str(image.parent / name))
    assert "no picture can be written with the extension" in error


def test_select_refuses_two_images_with_one_stem(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_image(1).save(image.with_suffix(".jpg"))
    assert "scene.jpg and scene.png would both be drawn into scene.kept.png" in refused(capsys, image)


def test_select_refuses_a_placeholder_in_the_question(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", str(image), "--question", "<image> what?", "--model", "no model"]) == 2
    assert "the question holds '<image>'" in capsys.readouterr().err


def test_select_writes_what_was_asked_for(image: Path, tmp_path: Path) -> None:
    loaded = tiny_loaded()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    argv = ["select", str(image), "--question", "w12", "--model", str(tmp_path / "model"), "--max-new-tokens", "1"]
    argv += ["--strategy", "greedy_repmax(keep=3)"]
    for options, name in (
        ([], "scene.kept.png"),
        ([], "scene.kept.png"),
        (["--out", str(tmp_path / "x.webp")], "x.webp"),
    ):
        assert main([*argv, *options]) == 0
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (1024, 1024)
            assert picture.format == {"png": "PNG", "webp": "WEBP"}[name.rsplit(".", 1)[1]]
    assert main([*argv, "--out", str(tmp_path / "x.webp"), "--overwrite"]) == 0


def gap(*arguments: object) -> int:
    return main(["gap", *map(str, arguments), "--keep", "3", "--distance", "cosine", "--time-limit", "1"])


def no_solver(*_: object, **__: object) -> Any:
    raise AssertionError("the solver ran")


def test_gap_refuses_two_images_of_one_name_before_it_solves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenprune.repmax.measure_gap", no_solver)
    files = [tmp_path / "a" / "x.npy", tmp_path / "b" / "x.npy", tmp_path / "c.safetensors"]
    for file in files[:2]:
        file.parent.mkdir()
        np.save(file, np.eye(6))
    save_file({"x": torch.eye(6)}, files[2])
    for pair in (files[:2], files[1:], [files[0], files[0]]):
        assert gap(*pair, "--out", tmp_path / "out") == 2
        assert "both hold an image called 'x'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_gap_reads_all_files_before_it_solves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenprune.repmax.measure_gap", no_solver)
    np.save(tmp_path / "good.npy", np.eye(6))
    np.save(tmp_path / "small.npy", np.eye(3))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "odd.npy", np.full((6, 2), np.nan))
    np.save(tmp_path / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.eye(6))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 7)
    names = {
        "small.npy": "it must be 2 to 2",
        "words.npy": "must hold real numbers",
        "odd.npy": "NaN or infinity",
        "object.npy": "is damaged",
        "several.npy": "several arrays",
        "cut.npy": "is damaged",
        "cut.safetensors": "is damaged",
    }
    for name, message in names.items():
        assert gap(tmp_path / "good.npy", tmp_path / name, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert message in error
        assert name in error or name == "small.npy"


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@given(share=st.floats(0, 0.99), places=st.lists(st.tuples(st.floats(0, 0.99), st.integers(0, 255)), max_size=4))
@FUZZ
def test_token_files_that_were_cut_or_changed(
    suffix: str, share: float, places: list[tuple[float, int]], tmp_path: Path
) -> None:
    file = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(file, np.eye(4))
    else:
        save_file({"x": torch.eye(4)}, file)
    data = bytearray(file.read_bytes())
    for place, value in places:
        data[int(place * len(data))] = value
    file.write_bytes(data if places else data[: int(share * len(data))])
    try:
        images = list(read_tokens(file))
    except ValueError as error:
        assert file.name in str(error)  # noqa: PT017
    else:
        assert places
        assert all(len(image) for _, image in images)


def test_gap_does_not_write_into_the_run_of_another_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Report(kind="compare", title="t", command="c").write(tmp_path)
    before = read_manifest(tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 3)))
    assert gap(tmp_path / "x.npy", "--out", tmp_path) == 2
    assert "holds a run of 'compare', whose report would be lost; choose another folder" in capsys.readouterr().err
    assert read_manifest(tmp_path) == before
    for _ in range(2):  # its own is replaced
        assert gap(tmp_path / "x.npy", "--out", tmp_path / "own") == 0
    (tmp_path / "own" / "manifest.json").write_text("{")
    assert gap(tmp_path / "x.npy", "--out", tmp_path / "own") == 2
    assert "of which it cannot be said what it is" in capsys.readouterr().err
