"""The page in a headless Chromium: a clip is chosen, a question is asked, and what comes back is shown as text."""

import time

import pytest
from browser import Browser, find_chromium
from helpers.served_page import echo, served

from uniaudio.errors import UserError
from uniaudio.serve.limits import Limits

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

CHOOSE = """
(() => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(2000)], "dog & <i>cat</i>.wav", {type: "audio/wav"}));
  const input = document.querySelector("input[type=file]");
  input.files = files.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
})()
"""
ASK = "[...document.querySelectorAll('button')].find(button => button.textContent.trim() == 'Ask').click()"
QUESTION = """
(() => {
  const field = document.querySelectorAll("textarea")[0];
  field.value = "is it broken?";
  field.dispatchEvent(new Event("input", {bubbles: true}));
})()
"""


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path / "profile")
    yield one
    one.close()


def wait_for(browser, script):
    """Wait until an expression is true."""
    end = time.monotonic() + 60
    while not browser.run(script):
        assert time.monotonic() < end, browser.run("document.body.innerText")
        time.sleep(0.1)


@pytest.mark.slow
def test_answers_and_errors_are_shown_as_text(browser, tmp_path, monkeypatch):
    def answer(data, question, task):
        if question == "is it broken?":
            raise UserError("the file cannot be read as <b>sound</b>")
        return echo(data, question, task)

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with served(answer, Limits()) as address:
        for width in (1280, 390):
            browser.open(address, width)
            wait_for(browser, "document.querySelector('input[type=file]') !== null")
            browser.run(CHOOSE)
            wait_for(browser, "document.querySelector('[aria-label=Clear], audio, #waveform') !== null")
            browser.run(ASK)
            wait_for(browser, "document.querySelectorAll('textarea')[1]?.value == '2000 <audio>Which tone?'")
            wait_for(browser, "document.body.innerText.includes('hi<b>gh')")
            wait_for(browser, "document.querySelector('img[src^=\"data:image\"]')?.naturalWidth > 500")
            assert browser.run("document.documentElement.scrollWidth") <= width
            browser.run(QUESTION)
            browser.run(ASK)
            wait_for(browser, "document.body.innerText.includes('cannot be read as <b>sound</b>')")
        local = (address, "data:", "blob:")
        assert [url for url in browser.requests if not url.startswith(local)] == []
        assert [error for error in browser.errors if "Content Security Policy" in error] == []
