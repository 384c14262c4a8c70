"""report.html in a real browser: it opens offline without a complaint, shows its pictures, sorts and turns pages."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.watched import opened
from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples, tiny_settings
from tokenprune.cli.main import main
from tokenprune.evaluate.comparison import compare
from tokenprune.evaluate.report import Card, Picture, Report, Shown, Slide, Word, write_report
from tokenprune.evaluate.report.html import render

RIGHT = ("w51 w18", "w51 w116")
# 1 x 1 pixel, the smallest PNG that there is.
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison on a tiny model."""
    out = tmp_path_factory.mktemp("runs")
    done = compare(
        tiny_loaded(),
        tiny_samples(8, answers=RIGHT),
        tiny_settings(),
        data="tiny",
        out=out,
        command="tokenprune compare --data tiny",
    )
    return done.folder / "report.html"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis of the bundled model, from the command line."""
    out = tmp_path_factory.mktemp("analysis")
    assert main(["analyze", "spatial", "--count", "2", "--device", "cpu", "--out", str(out)]) == 0
    return out / "analyze-spatial" / "report.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with known content, some of it hostile."""
    dot = Picture(data=DOT, alt='a "dot"')
    report = Report(
        title="</title><script>throw 1</script>",
        conditions="<b>bold</b>",
        findings=["<img src=x onerror=throw>"],
        shown=[
            Shown(
                title="One & two",
                columns=("name", "value", "note <i>"),
                rows=(("b", "9 [8, 10]", "x"), ("a", "-", ""), ("d", "-1.5", "z"), ("c10", "10%", "y")),
            )
        ],
        galleries={
            "slides": [
                Slide(title=f"slide {i}", cards=[Card(title="m", picture=dot, words=[Word(text="<w>")])])
                for i in range(3)
            ]
        },
        figures={"dot": DOT},
        notes={"dot.png": "</figcaption><script>throw 2</script>"},
        command="tokenprune compare --strategy '</code><script>throw 3</script>'",
        configuration={"x": "</script><script>throw 4</script>"},
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(report))
    return path


@pytest.mark.parametrize("name", ["comparison", "analysis", "small"])
def test_it_opens_without_a_request_or_a_complaint_and_shows_its_pictures(
    name: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    with opened(browser, path) as watched:
        page = watched.page
        pictures = page.locator("main img").count()
        assert pictures >= 1
        # Slides that are not shown have no size on the screen, but their pictures are decoded.
        loaded = page.evaluate(
            "Promise.all([...document.querySelectorAll('main img')].map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert len(loaded) == pictures
        assert min(loaded) > 0
        assert page.evaluate("[...document.querySelectorAll('main img')].every(i => i.alt.length > 0)")
        for button in page.locator("th button").all()[:4]:
            button.click()
        page.locator("#theme").click()
        page.locator(".zoom:visible").first.click()
        page.keyboard.press("Escape")
        assert watched.requests == [path.as_uri()]
        assert watched.complaints == []
        assert not page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


@pytest.mark.parametrize("name", ["comparison", "analysis", "small"])
def test_nothing_in_the_file_points_outside_of_it(name: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(name).read_text()
    links = Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith(("#", "data:")) for link in links.found)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|importScripts|<iframe|<object|<embed", text)


class Links(HTMLParser):
    """Every address in a page's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "href", "srcset", "action", "formaction", "data", "poster", "background", "ping")
        self.found += [value or "" for name, value in attrs if name in names]


def test_what_is_from_outside_is_text_and_nothing_else(small: Path, browser: Browser) -> None:
    with opened(browser, small) as watched:
        page = watched.page
        assert page.locator("script").count() == 1
        assert page.title() == "</title><script>throw 1</script>"
        assert page.locator(".findings li").inner_text() == "<img src=x onerror=throw>"
        assert page.locator(".command code").inner_text().endswith("'</code><script>throw 3</script>'")


def column(page: Page, place: int) -> list[str]:
    """The first table's cells in a column, as shown."""
    return page.locator(f"table >> nth=0 >> tbody tr:visible td:nth-child({place + 1})").all_inner_texts()


def test_a_table_sorts_by_value_and_tells_assistive_technology(small: Path, browser: Browser) -> None:
    with opened(browser, small) as watched:
        page = watched.page
        name, value, _ = page.locator("table th").all()
        assert [header.get_attribute("aria-sort") for header in (name, value)] == ["none", "none"]
        value.locator("button").click()
        assert column(page, 1) == ["10%", "9 [8, 10]", "-1.5", "-"]  # by number, what is missing last
        assert value.get_attribute("aria-sort") == "descending"
        value.locator("button").click()
        assert column(page, 1) == ["-1.5", "9 [8, 10]", "10%", "-"]
        assert value.get_attribute("aria-sort") == "ascending"
        name.locator("button").focus()
        page.keyboard.press("Enter")
        assert column(page, 0) == ["a", "b", "c10", "d"]
        assert [header.get_attribute("aria-sort") for header in (name, value)] == ["ascending", "none"]


def test_a_long_table_can_be_filtered(analysis: Path, browser: Browser) -> None:
    with opened(browser, analysis) as watched:
        page = watched.page
        block = page.locator(".table-block", has=page.locator("input")).first
        block.locator("input").fill("row_shift")
        shown = block.locator("tbody tr:visible").all_inner_texts()
        assert shown
        assert all("row_shift" in row for row in shown)


def test_pages_turn_by_button_and_by_key(small: Path, browser: Browser) -> None:
    with opened(browser, small) as watched:
        page = watched.page

        def shown() -> list[str]:
            return page.locator(".slide:visible h4").all_inner_texts()

        assert shown() == ["slide 0"]
        page.locator(".next").click()
        assert (shown(), page.locator(".place").inner_text()) == (["slide 1"], "2 / 3")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert shown() == ["slide 0"]  # round and round
        page.locator(".previous").click()
        page.keyboard.press("ArrowLeft")
        assert (shown(), page.locator(".place").inner_text()) == (["slide 1"], "2 / 3")


def test_a_picture_opens_at_full_size_and_closes(small: Path, browser: Browser) -> None:
    with opened(browser, small) as watched:
        page = watched.page
        page.locator("figure .zoom").click()
        assert page.locator("dialog").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_then_the_button(small: Path, browser: Browser, scheme: str) -> None:
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
    other = "dark" if scheme == "light" else "light"
    with opened(browser, small, scheme=scheme) as watched:
        page = watched.page

        def ground() -> str:
            return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

        assert ground() == grounds[scheme]
        page.locator("#theme").click()
        assert ground() == grounds[other]
        page.locator("#theme").click()
        assert ground() == grounds[scheme]


def test_it_fits_a_telephone(comparison: Path, browser: Browser) -> None:
    with opened(browser, comparison, width=390) as watched:
        assert not watched.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_the_comparison_says_what_the_contract_asks_for(comparison: Path, browser: Browser) -> None:
    with opened(browser, comparison) as watched:
        page = watched.page
        heads = " ".join(page.locator("table >> nth=0 >> th").all_inner_texts())
        words = ("exact\nmatch", "n", "Seeds", "Positions", "Reads of", "Answer", "vs Random", "Selection", "Prefill")
        for word in words:
            assert word.replace("\n", " ") in heads.replace("\n", " ")
        assert {"dense", "random", "uniform_grid", "grid_pool"} <= set(column(page, 0))
        subtitle = page.locator(".subtitle").inner_text()
        for word in ("n = 8", "4 images", "sdpa", "float32", "batch 3", "text source"):
            assert word in subtitle
        assert page.locator(".command code").inner_text() == "tokenprune compare --data tiny"
        assert page.locator(".slide").count() == 8
        assert '"max_new_tokens": 2' in str(page.locator("#reproduce details pre").text_content())


def test_a_report_is_made_again_from_the_folder_alone(comparison: Path) -> None:
    before = comparison.read_bytes()
    comparison.unlink()
    assert write_report(comparison.parent) == comparison
    assert comparison.read_bytes() == before


def test_a_file_that_the_manifest_names_and_nobody_has_is_named(comparison: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(comparison.parent, folder)
    (folder / "accuracy_vs_tokens.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*accuracy_vs_tokens\.png"):
        write_report(folder)
