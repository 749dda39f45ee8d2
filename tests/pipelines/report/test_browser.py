"""The report in a real browser: no error, nothing loaded, and what a person moves does what it says.

The browser is the one that the environment variable CHROMIUM names, or a Chromium or Chrome on the path. Without one
these tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labelmill.pipelines.report.gather import gather
from labelmill.pipelines.report.run_reader import RunReader
from labelmill.pipelines.report.write import write_report
from tests.pipelines.report.runs import EVIL, small_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser: set CHROMIUM, or install one of {', '.join(NAMES)}"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_run(tmp_path_factory.mktemp("browser"))
    write_report(str(folder))
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    return gather(RunReader(str(run)), None)


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    opened = open_page(browser, run)
    yield opened
    assert opened.troubles == []
    opened.close()


def open_page(browser: Any, run: Path, width: int = 1280, scheme: str = "light") -> Any:
    """The report, opened; ``troubles`` has what the browser complained about, and what it wanted to load."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.troubles = []
    page.on("console", lambda said: page.troubles.append(said.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on(
        "request",
        lambda wanted: page.troubles.append(wanted.url[:200]) if wanted.url[:5] not in ("file:", "data:") else 0,
    )
    page.goto((run / "report.html").as_uri())
    return page


def walk(page: Any) -> None:
    """Scroll from top to bottom, as a reader does, so that everything comes into view once."""
    page.evaluate("""async () => {
        for (let y = 0; y < document.documentElement.scrollHeight; y += 400) {
            scrollTo({top: y, behavior: "instant"});
            await new Promise((done) => setTimeout(done, 60));
        }
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_error_and_fits(browser: Any, run: Path, width: int, scheme: str) -> None:
    page = open_page(browser, run, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    walk(page)
    assert page.troubles == []
    assert page.title() == "odd – labelmill report"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 128)")
    assert light == (scheme == "light")
    empty = "[...document.querySelectorAll('.chart')].filter((chart) => !chart.querySelector('svg')).length"
    assert page.evaluate(empty) == 0
    missing = """[...document.querySelectorAll('img[data-picture]')].filter(
        (image) => image.offsetParent && !(image.complete && image.naturalWidth)).length"""
    assert page.evaluate(missing) == 0
    page.close()


def test_pictures_come_only_when_they_are_near(page: Any) -> None:
    assert page.evaluate("document.querySelectorAll('img[data-picture]:not([src])').length") > 0


def test_the_slider_says_what_a_threshold_keeps(page: Any, found: dict[str, Any]) -> None:
    score = next(each for each in found["scores"] if each["name"] == "boxes.detections · score")
    place = found["scores"].index(score)
    page.select_option("[data-score]", str(place))
    assert page.text_content("[data-threshold-value]") == "0.3"
    for threshold in (0, 42, 100):
        page.evaluate(
            "([value]) => { const slider = document.querySelector('[data-threshold]'); slider.value = value;"
            " slider.dispatchEvent(new Event('input', {bubbles: true})); }", [threshold / 100],
        )  # fmt: skip
        kept, images = sum(score["counts"][threshold:]), sum(score["best"][threshold:])
        assert page.text_content("[data-verdict]").startswith(f"{kept} of {score['count']} boxes have at least")
        assert page.text_content("[data-verdict]").endswith(f"in {images} of {score['images']} images.")
    page.focus("[data-threshold]")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("[data-threshold-value]") == "0.99"
    page.keyboard.press("Home")
    one = next(each for each in score["classes"] if each["name"] == EVIL)
    page.select_option("[data-score-class] select", label=EVIL)
    assert page.text_content("[data-verdict]").startswith(f"{sum(one['counts'])} of {sum(one['counts'])} boxes")


def test_a_score_of_images_counts_images(page: Any, found: dict[str, Any]) -> None:
    place, score = next((n, s) for n, s in enumerate(found["scores"]) if s["name"] == "inspect.sharpness")
    page.select_option("[data-score]", str(place))
    assert page.is_hidden("[data-score-class]")
    assert float(page.text_content("[data-threshold-value]")) == 0.01 == score["threshold"]
    told = page.text_content("[data-verdict]")
    least = round((0.01 - score["start"]) / score["width"])
    assert told.startswith(f"{sum(score['counts'][max(0, least) :])} of {score['count']} images have at least 0.01")


def test_filters_show_the_images_with_that_class(page: Any, found: dict[str, Any]) -> None:
    shown = "[...document.querySelectorAll('#overlay-grid li:not([hidden])')].map((each) => +each.dataset.image)"
    worst = found["picked"]["worst"]
    assert page.evaluate(shown) == worst[:12]
    page.click("[data-more]")
    assert page.evaluate(shown) == worst
    page.select_option("[data-class]", label=EVIL)
    assert page.evaluate(shown) == [n for n in worst if EVIL in found["overlays"][n]["classes"]] != worst
    page.select_option("[data-class]", label="all")
    page.click("[data-set=empty]")
    assert page.evaluate(shown) == found["picked"]["empty"][:12]
    page.click("[data-set=even]")
    assert page.evaluate(shown) == found["picked"]["even"][:12]


@pytest.mark.parametrize(("layer", "drawn"), [("boxes", "rect"), ("masks", ".mask"), ("words", ".word")])
def test_layers_go_and_come_back(page: Any, layer: str, drawn: str) -> None:
    part = f"document.querySelector('#overlay-grid {drawn}').closest('.box, .mask, .word')"
    visible = f"getComputedStyle({part}).display !== 'none'"
    assert page.evaluate(visible)
    page.click(f"[data-layer={layer}]")
    assert not page.evaluate(visible)
    page.click(f"[data-layer={layer}]")
    assert page.evaluate(visible)


def test_boxes_lie_where_they_are_in_the_picture(page: Any) -> None:
    page.locator("#overlay-grid li:not([hidden]) img[src]").first.wait_for()
    off = page.evaluate("""() => {
        const item = document.querySelector('#overlay-grid li:not([hidden])');
        const image = item.querySelector('img').getBoundingClientRect();
        const rect = item.querySelector('.box rect');
        const drawn = rect.getBoundingClientRect();
        const scale = image.width / item.querySelector('img').getAttribute('width');
        const [x, width] = ['x', 'width'].map((name) => rect.getAttribute(name) * scale);
        return Math.abs(drawn.left - image.left - x) + Math.abs(drawn.width - width);
    }""")
    assert off < 4  # pixels; the line itself has a width


def test_the_map_shows_the_image_under_the_pointer(page: Any, found: dict[str, Any]) -> None:
    page.locator("[data-chart=map]").scroll_into_view_if_needed()
    dot = page.locator("[data-chart=map] circle").nth(3)
    dot.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    box = dot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 30, box["y"])
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.locator("#tip img").wait_for()
    assert page.text_content("#tip .key") in found["keys"].values()
    assert set(page.locator("#clusters .legend li").all_text_contents()) == {"in none", "0", "1"}
    page.select_option("[data-map]", "outcome")
    dots = "[...document.querySelectorAll('[data-chart=map] circle[fill]')]"
    fills = page.evaluate(f"{dots}.map((dot) => dot.getAttribute('fill'))")
    assert set(fills) == {"var(--kept)"}


def test_a_click_shows_a_picture_larger(page: Any) -> None:
    image = page.locator("#overlay-grid li:not([hidden]) img[src]").first
    image.click()
    assert page.is_visible("dialog .picture") and page.locator("dialog svg rect").count() > 0
    page.keyboard.press("Escape")
    assert page.is_hidden("dialog .picture")


def test_names_do_nothing_but_stand_there(page: Any) -> None:
    walk(page)
    assert page.title() == "odd – labelmill report"
    assert EVIL in page.locator("[data-class] option").all_text_contents()
    assert any(
        re.match(re.escape(EVIL[:8]), text) for text in page.locator("[data-chart=classes] text").all_text_contents()
    )


def test_only_scripts_of_the_page_may_run(page: Any) -> None:
    page.evaluate("""() => {
        const added = document.createElement('script');
        added.textContent = 'document.title = "owned"';
        document.body.append(added);
    }""")
    assert page.title() == "odd – labelmill report"
    assert len(page.troubles) == 1 and "Content Security Policy" in page.troubles.pop()
