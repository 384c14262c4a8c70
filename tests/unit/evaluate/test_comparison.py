"""The whole job on a tiny model: run folder, resuming, timing, figures."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples, tiny_settings
from tokenprune import Choice
from tokenprune import strategy as method
from tokenprune.core import places, registry
from tokenprune.core import strategy as core
from tokenprune.core.budget import Keep
from tokenprune.core.tokens import Tokens
from tokenprune.evaluate import comparison as module
from tokenprune.evaluate.comparison import Comparison, compare
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.runner import Runner
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.significance import corrected

# From a dense run of the tiny model: some right answers, so that accuracies are neither 0 nor 1.
RIGHT = ("w51 w18", "w51 w116")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return tiny_samples(8, answers=RIGHT)


@pytest.fixture(scope="module")
def whole(loaded: LoadedModel, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(loaded, samples, tiny_settings(), data="tiny", out=tmp_path_factory.mktemp("whole"))


def again(loaded: LoadedModel, samples: list[Sample], out: Path, **options: Any) -> Comparison:
    settings = options.pop("settings", tiny_settings())
    return compare(loaded, samples, settings, data="tiny", out=out, figures=False, **options)


@method("in_decoder", register=False)
class InDecoder(core.Stage):
    """A strategy that acts where the runner cannot."""

    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        raise NotImplementedError

    @property
    def place(self) -> places.InDecoder:
        return places.InDecoder(2, "compact")


class StopAfter:
    """Progress that presses Ctrl-C in the middle of a cell."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def start(self, total: float, done: float) -> None:
        assert 0 <= done < total

    def advance(self, amount: float, what: str) -> None:
        assert amount > 0
        assert what
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def numbers(comparison: Comparison) -> list[dict[str, str]]:
    """The results table without times."""
    with (comparison.folder / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if "_ms" not in k} for row in csv.DictReader(file)]


def test_dense_comes_first_and_controls_are_always_there(whole: Comparison) -> None:
    assert [row.method for row in whole.rows[:4]] == ["dense", "random", "uniform_grid", "grid_pool"]
    assert {row.keep for row in whole.rows} == {None, 0.5, 2}
    assert whole.complete
    assert whole.rows[0].tokens_out == 16
    assert 0 < whole.rows[0].accuracy.value < 1


def test_budgets_are_met_and_seeds_are_pooled(whole: Comparison) -> None:
    for row in whole.rows[1:]:
        assert row.tokens_out == (8 if row.keep == 0.5 else 2)
        assert row.seeds == (2 if "random" in row.method else 1)
        assert (row.seed_sd is not None) == ("random" in row.method)
        assert (row.difference is None) == (row.method == "random")


def test_files_agree_with_one_another(whole: Comparison, samples: list[Sample]) -> None:
    lines = [json.loads(line) for line in (whole.folder / "samples.jsonl").read_text().splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(whole.folder / "selections.parquet").to_pylist()
    cells = whole.cells
    assert len(lines) == len(table) == cells * len(samples)
    dense = [line for line in lines if line["method"] == "dense"]
    assert sum(line["correct"] for line in dense) / len(dense) == whole.rows[0].accuracy.value
    assert all(line["agrees_with_dense"] for line in dense)
    for entry in table:
        if entry["method"] == "dense":
            assert entry["indices"] is None
        else:
            assert len(entry["indices"]) == entry["tokens_out"]
            assert entry["indices"] == sorted(set(entry["indices"]))


def test_every_row_of_the_table_says_under_which_conditions_it_was_measured(whole: Comparison) -> None:
    with (whole.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(whole.rows)
    for row in rows:
        assert (row["metric"], row["n"], row["model"], row["data"]) == ("exact match", "8", "tiny", "tiny")
        assert (row["attention"], row["dtype"], row["batch_size"], row["max_new_tokens"]) == (
            "sdpa",
            "float32",
            "3",
            "2",
        )
        assert row["device"]
        kept = {"": "16", "0.5": "8", "2": "2"}[row["keep"]]
        assert (row["tokens_least"], row["tokens_most"]) == (kept, kept)
        assert row["positions"] == ("-" if row["method"] == "dense" else "compact")
        assert row["text_source"] == ("prompt" if "mi_alignment" in row["method"] else "none")


def test_every_column_is_explained_in_the_documentation(whole: Comparison) -> None:
    page = (Path(__file__).parents[3] / "docs" / "run-folder.md").read_text()
    with (whole.folder / "results.csv").open() as file:
        columns = next(csv.reader(file))
    kinds = {f"accuracy_{kind}" for kind in whole.rows[0].kinds}
    names = {name.removesuffix("_q25").removesuffix("_q75") for name in columns if name not in kinds}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_run_json_holds_the_reporting_contract(whole: Comparison) -> None:
    report = json.loads((whole.folder / "run.json").read_text())
    assert report["schema_version"] == 1
    assert report["status"] == "finished"
    assert report["samples"] == 8
    assert report["resampling"]["units"] == 4  # two questions share a picture
    assert report["metric"].startswith("exact match")
    assert report["position_policy"] == ["compact"]
    assert report["text_source"] == {row.method: row.text_source for row in whole.rows if not row.is_dense}
    assert set(report["text_source"].values()) <= set(report["text_source_meaning"])
    assert report["controls"] == {
        "dense": "the unpruned model",
        "random": "2 seeds",
        "uniform_grid": "1 seed",
        "grid_pool": "1 seed",
    }
    assert {"torch", "transformers", "tokenprune"} <= set(report["versions"])
    assert report["output_length"]["limit"] == 2
    config = report["config"]
    assert {"attention", "dtype", "batch_size", "device", "seeds", "threads"} <= set(config)
    for word in ("n = 8", "4 images", "exact match", "compact", "sdpa", "float32", "batch 3"):
        assert word in whole.footer


def test_every_stage_is_timed(whole: Comparison) -> None:
    assert set(whole.rows[0].times) == {"vision", "prefill", "decode"}
    for row in whole.rows[1:]:
        assert set(row.times) == {"vision", "selection", "prefill", "decode"}
        for spread in row.times.values():
            assert 0 < spread.low <= spread.median <= spread.high


def test_warm_up_batch_is_not_counted(whole: Comparison) -> None:
    for file in (whole.folder / "cells").glob("*.json"):
        assert [batch["counted"] for batch in json.loads(file.read_text())["batches"]] == [False, True, True]


def test_figures_are_made(whole: Comparison) -> None:
    with Image.open(whole.folder / "accuracy_vs_tokens.png") as image:
        assert image.size == (2000, 920)
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50
    with Image.open(whole.folder / "kept_tokens.png") as image:
        assert image.size[0] > 1200
        assert image.size[1] > image.size[0]


def test_same_configuration_goes_to_the_same_folder_and_is_not_run_again(
    loaded: LoadedModel, samples: list[Sample], whole: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "run", lambda *_: pytest.fail("a finished cell ran again"))
    second = again(loaded, samples, whole.folder.parent)
    assert second.folder == whole.folder
    assert second.reused == second.finished == whole.cells
    assert numbers(second) == numbers(whole)


@pytest.mark.parametrize("change", [{"budgets": (0.5,)}, {"seeds": (0,)}, {"positions": "original"}, {"batch_size": 4}])
def test_another_configuration_gets_another_folder(
    change: dict[str, Any],
    loaded: LoadedModel,
    samples: list[Sample],
    whole: Comparison,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_missing", stop)
    other = again(loaded, samples, whole.folder.parent, settings=tiny_settings(**change))
    assert other.folder != whole.folder
    assert other.rows == ()


def test_resuming_after_an_interruption_gives_the_uninterrupted_result(
    loaded: LoadedModel, samples: list[Sample], whole: Comparison, tmp_path: Path
) -> None:
    # 3 steps of encoding, then 3 per cell: this stops in the middle of the fifth cell.
    first = again(loaded, samples, tmp_path, progress=StopAfter(3 + 3 * 4 + 2))
    assert not first.complete
    assert first.finished == 4
    assert first.facts["status"] == "interrupted"
    assert [row.method for row in first.rows] == ["dense", "random", "uniform_grid"]
    assert (first.folder / "samples.jsonl").is_file()
    before = {file.name: file.read_bytes() for file in (first.folder / "cells").iterdir()}
    assert len(before) == 4

    second = again(loaded, samples, tmp_path)
    assert second.folder == first.folder
    assert second.complete
    assert second.reused == 4
    assert len(second.facts["sessions"]) == 2
    for name, content in before.items():
        assert (second.folder / "cells" / name).read_bytes() == content
    assert numbers(second) == numbers(whole)
    for name in ("samples.jsonl", "selections.parquet"):
        assert (second.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_fresh_does_finished_cells_again(loaded: LoadedModel, samples: list[Sample], tmp_path: Path) -> None:
    settings = tiny_settings(budgets=(2,), seeds=(0,), methods=(Method("greedy_repmax"),))
    again(loaded, samples, tmp_path, settings=settings)
    redone = again(loaded, samples, tmp_path, settings=settings, fresh=True)
    assert redone.reused == 0
    assert redone.complete


def test_answers_do_not_depend_on_the_cache_or_the_batch_size(
    loaded: LoadedModel, samples: list[Sample], whole: Comparison
) -> None:
    cells = tiny_settings().cells
    cell = next(cell for cell in cells if cell.method == "random")
    runner = Runner(loaded, samples, batch_size=8, max_new_tokens=2, cache_bytes=0)
    runner.check([cell.strategy for cell in cells if cell.strategy is not None])
    runner.prepare()
    content = runner.run(cell)
    assert runner.cache.encoded_again > 0
    stored = json.loads((whole.folder / "cells" / f"{cell.id}.json").read_text())
    assert content["samples"] == stored["samples"]
    assert [batch["counted"] for batch in content["batches"]] == [True]  # the only batch ran twice


def test_pictures_are_encoded_once(loaded: LoadedModel, samples: list[Sample]) -> None:
    runner = Runner(loaded, samples, batch_size=3, max_new_tokens=2)
    runner.check([])
    runner.prepare()
    assert sum(entry["images"] for entry in runner.vision_times) == 4
    assert runner.cache.encoded_again == 0


def test_dense_answers_are_those_of_the_plain_model(loaded: LoadedModel, samples: list[Sample]) -> None:
    from tokenprune.evaluate.batches import processed

    runner = Runner(loaded, samples, batch_size=8, max_new_tokens=2)
    runner.check([])
    runner.prepare()
    records, _ = runner.run_batch(runner.batches[0], None)
    inputs = processed(loaded.processor, samples)
    sequences = loaded.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    plain = loaded.processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [record["answer"] for record in records] == [text.strip() for text in plain]


def test_several_images_per_question(loaded: LoadedModel, samples: list[Sample]) -> None:
    pair = Sample(id="pair", images=(*samples[0].images, *samples[2].images), question="w30", answers=("w7",))
    runner = Runner(loaded, [samples[0], pair], batch_size=2, max_new_tokens=2)
    strategy = Method("greedy_repmax").strategy(keep=4)
    runner.check([strategy])
    runner.prepare()
    records, _ = runner.run_batch(runner.batches[0], strategy)
    assert [len(record["images"]) for record in records] == [1, 2]
    assert [image["tokens_out"] for record in records for image in record["images"]] == [4, 4, 4]


def test_a_strategy_that_does_not_fit_is_refused_before_work(
    loaded: LoadedModel, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, "in_decoder", InDecoder)
    settings = tiny_settings(methods=(Method("in_decoder"),))
    with pytest.raises(ValueError, match="in_decoder.* acts at the 'decoder' site"):
        again(loaded, samples, tmp_path, settings=settings)
    assert not list(tmp_path.iterdir())


def test_no_samples_is_an_error_before_work(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny: there are no samples"):
        again(loaded, [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_progress_reaches_the_total(loaded: LoadedModel, samples: list[Sample], tmp_path: Path) -> None:
    steps: list[tuple[float, str]] = []

    class Watch:
        total = 0.0

        def start(self, total: float, done: float) -> None:
            self.total = total - done

        def advance(self, amount: float, what: str) -> None:
            steps.append((amount, what))

    watch = Watch()
    again(loaded, samples, tmp_path, settings=tiny_settings(budgets=(2,)), progress=watch)
    assert sum(amount for amount, _ in steps) == pytest.approx(watch.total)
    assert {"encoding pictures", "dense", "random"} <= {what for _, what in steps}


def test_p_values_stand_beside_the_intervals_corrected_per_budget(whole: Comparison) -> None:
    rows = [row for row in whole.rows if row.p_value is not None]
    assert {row.method for row in rows} == {row.method for row in whole.rows if row.difference is not None}
    for keep in {repr(row.keep) for row in rows}:
        family = [row for row in rows if repr(row.keep) == keep]
        assert [row.p_corrected for row in family] == corrected([row.p_value or 0.0 for row in family])
        assert len(family) == 4  # two controls, two methods; Random is what they are compared with
    with (whole.folder / "results.csv").open() as file:
        table = {(row["method"], row["keep"]): row for row in csv.DictReader(file)}
    for row in rows:
        line = table[row.method, str(row.keep)]
        assert float(line["p_random"]) == pytest.approx(row.p_value, rel=1e-5)
        assert float(line["p_random_holm"]) == pytest.approx(row.p_corrected, rel=1e-5)
    assert table["random", "2"]["p_random"] == ""


def test_methods_as_texts_give_a_table_for_people_and_programs(tmp_path: Path) -> None:
    from tokenprune.evaluate import Method, Settings, compare

    loaded, samples = tiny_loaded(), tiny_samples(4)
    options: dict[str, Any] = {"budgets": [2], "seeds": 1, "batch_size": 3, "max_new_tokens": 2}
    done = compare(loaded, samples, ["greedy_repmax"], **options, out=tmp_path, figures=False)
    assert done.table["method"].tolist() == ["dense", "random", "uniform_grid", "grid_pool", "greedy_repmax"]
    assert done.table["accuracy"].tolist() == [row.accuracy.value for row in done.rows]
    assert done.report.to_json()["tables"]["results"][4]["keep"] == 2
    settings = Settings(methods=(Method("greedy_repmax"),), budgets=(2,), seeds=(0,), batch_size=3, max_new_tokens=2)
    again = compare(loaded, samples, settings, out=tmp_path, figures=False)
    assert (again.folder, again.reused) == (done.folder, 5)
    with pytest.raises(ValueError, match="budgets is part of Settings"):
        compare(loaded, samples, settings, budgets=[2], out=tmp_path)
    with pytest.raises(TypeError, match="put it into a list"):
        compare(loaded, samples, "greedy_repmax", out=tmp_path)
