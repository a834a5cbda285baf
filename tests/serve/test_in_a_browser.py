"""The page in a headless Chromium: a clip is chosen, asked about, and what comes back is shown as text."""

import time

import numpy as np
import pytest
from browser import Browser, find_chromium
from served_page import served

from uniaudio.errors import UserError
from uniaudio.serve.answering import Reply
from uniaudio.serve.limits import Limits
from uniaudio.serve.picture import mel_picture

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

CHOOSE = """
(() => {
  const chosen = new DataTransfer();
  chosen.items.add(new File([new Uint8Array(%d)], "dog & <i>cat</i>.wav"));
  document.getElementById("file").files = chosen.files;
  document.getElementById("file").dispatchEvent(new Event("change"));
})()
"""


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path / "profile")
    yield one
    one.close()


def visit(browser, port, width, dark=False):
    """Open the page at a width."""
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 700
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
    browser.loaded.clear()
    browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
    assert browser.loaded.wait(60)


def until(browser, script, wanted):
    """Wait for an expression to have a value."""
    end = time.monotonic() + 30
    while (found := browser.run(script)) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.1)


def text_of(name):
    return f"document.getElementById('{name}').textContent"


@pytest.mark.slow
def test_a_clip_is_asked_about(browser):
    def answer(data, question, offer):
        if question.endswith("broken?"):
            raise UserError("the file cannot be read as <b>sound</b>")
        labels = [(label, share) for label, share in zip(offer.labels, (0.9, 0.1), strict=True)]
        return Reply("a <b>dog</b>", tuple(labels), 1.5, 0.2, mel_picture(np.zeros(1600, np.int16)))

    with served(answer, Limits(max_mib=0.01)) as call:
        for width, dark in ((1280, False), (390, True)):
            visit(browser, call.port, width, dark)
            browser.run("document.getElementById('ask').click()")
            until(browser, text_of("error"), "choose, drop or record a clip first")
            browser.run(CHOOSE % 20_000)
            until(
                browser, text_of("error"), "dog & <i>cat</i>.wav is larger than 0.01 MiB; cut or compress it"
            )
            browser.run(CHOOSE % 2_000)
            until(browser, text_of("clip"), "dog & <i>cat</i>.wav (2 KiB)")
            browser.run("document.getElementById('ask').click()")
            until(browser, text_of("answer"), "a <b>dog</b>")
            assert browser.run(text_of("bars")) == "low90.0 %hi<b>gh10.0 %"
            assert browser.run("document.querySelectorAll('.bar')[0].style.width") == "90%"
            until(browser, "document.getElementById('mel').naturalWidth", 10)
            assert browser.run("document.documentElement.scrollWidth") <= width
            browser.run("document.getElementById('question').value = 'is it broken?'")
            browser.run("document.getElementById('ask').click()")
            until(browser, text_of("error"), "the file cannot be read as <b>sound</b>")
        assert browser.run("document.querySelectorAll('main b, main i').length") == 0
        own = (f"http://127.0.0.1:{call.port}/", "data:", "blob:")
        assert [url for url in browser.requests if not url.startswith(own)] == []
        assert [
            error for error in browser.errors if "400" not in error
        ] == []  # the refusal above is reported
