"""The page in a headless Chromium: no error, no request, nothing too wide, readable in light and in dark."""

import pytest
from browser import Browser, find_chromium
from helpers.runs import (
    START,
    answers_of,
    forgetting_results,
    suite_results,
    with_choices,
    write_json,
    write_run,
)

from uniaudio.commands.report import Wanted, report_runs
from uniaudio.report.clip_players import SoundBudget
from uniaudio.report.embedding_map import EmbeddingMap, Spot
from uniaudio.report.page import ReportPage, write_page
from uniaudio.report.run_folder import compute_cost, read_run
from uniaudio.report.wrong_answers import WrongAnswers

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

# Contrast after WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances, of every text with what lies behind it.
CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * under[i]);
  const light = (color) => color.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const bad = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || element.closest("script, style, svg")) continue;
    const ground = behind(element);
    const ink = over(rgba(getComputedStyle(element).color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5)
      bad.push([texts.currentNode.textContent.trim().slice(0, 30), (a + 0.05) / (b + 0.05)]);
  }
  return bad.slice(0, 5);
})()
"""
NAMELESS = """
[...document.querySelectorAll("svg, img, audio, button, [role=region], nav, section")]
  .filter((e) => !e.closest("[aria-hidden=true]"))
  .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.textContent.trim()))
  .map((e) => e.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two runs with everything but clips and maps, which the next page has."""
    folder = tmp_path_factory.mktemp("runs")
    sets = [f"a_rather_long_name_of_a_set_{i:02d}" for i in range(50)]
    first = write_run(folder / "first_run_of_all", sets)
    second = write_run(folder / "second", sets, seed=1, finished=False)
    with_choices(first)
    probes = write_json(
        folder / "suite.json", suite_results(sets, [START, str(first), str(second), f"random:{START}"])
    )
    labels = {f"{name}:asked": [f"label {i}" for i in range(12)] for name in sets[:14]}
    write_json(first / "answers.json", answers_of(labels, right=0.5))
    write_json(second / "answers.json", answers_of(labels, right=0.95, seed=3))
    write_json(first / "forgetting.json", forgetting_results())
    return report_runs([first, second], folder / "r.html", Wanted(probes=[probes]))


@pytest.fixture(scope="module")
def page_with_clips(tmp_path_factory):
    """A page with clips and a map of 24 labels."""
    import numpy as np

    folder = tmp_path_factory.mktemp("clips")
    run = read_run(write_run(folder / "run", ["t"], steps=40), "run")
    clip = SoundBudget().add_player("clip", (8000 * np.sin(np.arange(32000) / 6)).astype(np.int16))
    spots = [Spot((i % 20) / 20, i / 400, i % 24, f"clips/test/{i}") for i in range(400)]
    answer = {"id": "clips/test/1", "reference": "low", "answer": "high", "label": "high", "confidence": 0.7}
    wrong = WrongAnswers([(answer, [clip])], 9)
    content = ReportPage(
        "clips",
        [run],
        wrong={"tones:tone": wrong},
        maps=[EmbeddingMap("tones, t-SNE, run", "note", [f"label {i}" for i in range(24)], spots)],
        map_players={"tones": [clip]},
        costs={"run": compute_cost(run)},
    )
    return write_page(content, folder / "r.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 360])
def test_readable(browser, page, page_with_clips, width, dark):
    for file in (page, page_with_clips):
        browser.errors.clear()
        browser.requests.clear()
        browser.open(file, width, dark)
        browser.run("document.querySelectorAll('details').forEach((part) => part.open = true)")
        assert browser.errors == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [file.as_uri()]
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(NAMELESS) == []
        assert browser.run(CONTRAST) == []


def test_every_pair_of_sign_and_colour_means_one_label(browser, page_with_clips):
    browser.open(page_with_clips, 1280)
    pairs = browser.run(
        """[...document.querySelectorAll(".legend li use")]
          .map((e) => e.getAttribute("href") + getComputedStyle(e).fill)"""
    )
    assert len(pairs) == 24
    assert len(set(pairs)) == 24


def test_tables_sort_by_numbers_and_by_words(browser, page):
    browser.open(page, 1280)
    column = """(i) => [...document.querySelectorAll("#probes ~ details table.sortable")[0].tBodies[0].rows]
      .map((row) => row.cells[i].dataset.value ?? row.cells[i].textContent)"""
    click = """document.querySelectorAll("#probes ~ details table.sortable thead")[0].rows[0].cells[%d]
      .querySelector("button").click()"""
    names = browser.run(f"({column})(0)")
    browser.run(click % 3)
    falling = [float(v) for v in browser.run(f"({column})(3)")]
    assert falling == sorted(falling, reverse=True)
    browser.run(click % 3)
    assert [float(v) for v in browser.run(f"({column})(3)")] == falling[::-1]
    browser.run(click % 0)
    assert browser.run(f"({column})(0)") == sorted(names)
    head = """document.querySelectorAll("#probes ~ details table.sortable thead th")[0].getAttribute("aria-sort")"""
    assert browser.run(head) == "descending"


def test_the_keyboard_sees_where_it_is(browser, page):
    browser.open(page, 1280)
    styles = browser.run(
        """[...document.querySelectorAll("nav a, summary, .scroll")]
          .filter((e) => e.checkVisibility()).slice(0, 20).map((e) => {
          e.focus({focusVisible: true}); return [document.activeElement === e, getComputedStyle(e).outlineStyle]; })"""
    )
    assert len(styles) == 20
    assert all(focused and outline == "solid" for focused, outline in styles)


def test_clips_play_and_paper_opens_what_is_closed(browser, page_with_clips, page):
    browser.open(page_with_clips, 390)
    seconds = browser.run(
        """new Promise((resolve) => { const clip = document.querySelector("audio");
          clip.addEventListener("loadedmetadata", () => resolve(clip.duration));
          clip.addEventListener("error", () => resolve("the clip cannot be played")); clip.load(); })"""
    )
    assert seconds == pytest.approx(2.0, abs=0.2)
    browser.open(page, 1280)
    closed = "document.querySelectorAll('details:not([open])').length"
    assert browser.run(closed) > 10
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(closed) == 0
