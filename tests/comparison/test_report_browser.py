"""The report in a real browser: it clicks through, listens for errors, and asks axe what shuts people out.

Needs Debian's `chromium`, which `.ci/run` installs; without it these tests are skipped.
"""

import shutil

import pytest
from run_of_nothing import HOSTILE, whole_report

from common.parts import PARTS

CHROMIUM = shutil.which("chromium")
ALONE = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGES = ("index", "gallery", *PARTS)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Debian's chromium is not installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return whole_report(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=ALONE)


@pytest.fixture
def visit(browser, report):
    """Open a page of the report; at the end nothing may have been logged as an error or asked of a network."""
    said, asked, contexts = [], [], []

    def open_page(name, width=1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{report / name}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said and all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_picture_is_broken_and_nobody_is_shut_out(visit, name, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(f"{name}.html", color_scheme=scheme)
    page.evaluate(
        "for (const one of document.querySelectorAll('img, details')) { one.loading = 'eager'; one.open = true; }"
    )
    page.wait_for_load_state("networkidle")
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
    assert page.evaluate(broken) == []
    found = Axe().run(page).response["violations"]
    grave = {each["id"]: each["nodes"][0]["html"] for each in found if each["impact"] in ("serious", "critical")}
    assert not grave
    assert "owned" not in page.title()


@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_screen_shows_everything_without_sliding_the_page(visit, name):
    page = visit(f"{name}.html", width=380)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_from_a_verdict_to_its_claim_and_back(visit):
    page = visit("index.html")
    page.get_by_role("link", name="C10 contradicted").first.click()
    assert page.url.endswith("svce.html#C10") and page.locator("tr#C10").is_visible()
    assert page.evaluate("document.querySelector(':target').id") == "C10"
    page.get_by_role("navigation").get_by_role("link", name="Overview").click()
    assert page.url.endswith("index.html")


def test_every_page_is_one_click_away(visit):
    page = visit("index.html")
    for name in page.get_by_role("navigation").get_by_role("link").all_inner_texts():
        page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
        assert page.locator("nav [aria-current=page]").inner_text() == name
        assert page.locator("h1").inner_text()


def test_dark_or_light_is_remembered(visit):
    page = visit("index.html", color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.get_by_role("button", name="dark or light").press("Enter")
    after = page.evaluate(colour)
    page.get_by_role("link", name="gallery", exact=True).click()
    assert page.evaluate(colour) == after != before


def test_a_table_is_sorted_by_number_and_by_name_and_gaps_come_last(visit):
    page = visit("svce.html#table-numbers")
    table = page.locator("#table-numbers table.sortable")
    assert table.is_visible()  # the link opens it

    def column(k):
        return [row.locator("td").nth(k).inner_text() for row in table.locator("tbody tr").all()]

    table.get_by_role("button", name="value").click()
    assert column(1) == ["9.5", "10", "–"]
    table.get_by_role("button", name="value").press("Enter")
    assert column(1) == ["10", "9.5", "–"] and table.locator("th[aria-sort=descending]").inner_text().startswith(
        "value"
    )
    table.get_by_role("button", name="name").click()
    assert column(0)[1:] == ["a", "NA"]
    page.locator("table.wide").get_by_role("button", name="claim").click()
    assert page.locator("table.wide tbody th").all_inner_texts() == ["C1", "C2", "C10"]


def test_the_gallery_shows_any_picture_over_its_original_by_keyboard_alone(visit):
    page = visit("gallery.html")
    assert page.locator("#images button").count() == 3
    page.locator("#images button").nth(1).press("Enter")
    assert page.locator("#images button[aria-pressed=true]").count() == 1
    page.get_by_role("button", name="svce, strength 1,").press("Enter")
    assert page.locator("#said").inner_text().startswith("svce, strength 1: ")
    slider = page.get_by_role("slider")
    slider.press("Home")
    assert page.evaluate("document.querySelector('.stack').style.getPropertyValue('--cut')") == "0%"
    slider.press("ArrowRight")
    assert page.evaluate("document.querySelector('.stack').style.getPropertyValue('--cut')") == "1%"
    assert page.evaluate("location.hash").endswith("/svce/1")


def test_a_link_into_the_gallery_leads_to_its_picture(visit):
    page = visit("gallery.html#faces-smile/x-1/identity/0.5")
    assert page.locator("#chosen").inner_text().endswith("(x-1)")
    assert page.locator("#said").inner_text().startswith("identity, strength 0.5: ")
    assert page.locator("#paths button[aria-pressed=true]").get_attribute("data-at") == "2/0"


def test_the_link_that_the_gallery_writes_leads_back_whatever_a_method_is_called(visit):
    page = visit("gallery.html")
    page.locator("#images button").nth(2).click()
    page.locator("#paths tr").nth(0).locator("button").nth(1).click()
    said, link = page.locator("#said").inner_text(), page.url
    assert HOSTILE[:30] in said
    again = visit(f"gallery.html#{link.partition('#')[2]}")
    assert again.locator("#said").inner_text() == said
    assert again.locator("#chosen").inner_text() == page.locator("#chosen").inner_text()


def test_a_printed_page_keeps_the_headings_of_its_tables(visit):
    page = visit("svce.html")
    page.emulate_media(media="print")
    assert page.locator("table.wide").get_by_role("button", name="claim").is_visible()
    assert not page.locator("header.top").is_visible()


def test_hostile_names_are_text_in_the_gallery(visit):
    page = visit("gallery.html")
    assert page.title().startswith("Gallery") and page.locator("#paths script").count() == 0
    assert HOSTILE[:30] in page.locator("#paths th").nth(0).inner_text()


def test_tiles_are_the_pictures_of_their_sheet(visit):
    """A tile's background is one cell of the sheet, however large the tile is drawn."""
    page = visit("gallery.html")
    box = page.locator("#after").bounding_box()
    style = page.evaluate("(({backgroundSize, backgroundPosition}) => [backgroundSize, backgroundPosition])"
                          "(getComputedStyle(document.getElementById('after')))")  # fmt: skip
    size, place = ([float(part.removesuffix("px")) for part in text.split()] for text in style)
    assert size == pytest.approx([3 * box["width"], 6 * box["height"]], rel=1e-3)
    assert all((value / box["width"]) % 1 == pytest.approx(0, abs=1e-3) for value in place)
