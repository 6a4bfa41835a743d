"""Every page of the built book, opened in a browser without a network, on a screen and a telephone.

These tests exist where `_build/html` and a Chromium do; `.ci/run` makes sure of both.
"""

import functools
import http.server
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HTML = Path(__file__).parents[1] / "_build" / "html"
PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.glob("**/*.html"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
WIDTHS = (400, 1300)  # pixels: a telephone, then a window that is drawn wider
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"  # offline its text stands there

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN_IMAGES = """[...document.images].filter(image => image.src.startsWith(location.origin))
    .filter(image => !(image.complete && image.naturalWidth)).map(image => image.src)"""
FORMULAS = "document.querySelectorAll('.math').length"
UNSET = """[...document.querySelectorAll('.math')]
    .filter(math => !math.querySelector('mjx-container') || math.querySelector('mjx-merror'))
    .map(math => math.textContent)"""
PROSE = """(() => { const copy = document.querySelector('article').cloneNode(true);
    copy.querySelectorAll('pre, code, script, style, mjx-container').forEach(e => e.remove());
    return copy.textContent })()"""
LATEX = re.compile(r"\\[(\[]|\$\$|\\begin\{|\\frac|\\math|\$[^$\n]{1,80}\$")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing: pytest's output is for results."""


@pytest.fixture(scope="module")
def site():
    handler = functools.partial(Quiet, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, site, page):
    """The page with its formulas set, and the addresses outside the book that it asked for."""
    outside = []
    tab = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})

    def route(request):
        if urlsplit(request.request.url).hostname == "127.0.0.1":
            return request.continue_()
        outside.append(request.request.url)
        return request.abort()

    tab.route("**/*", route)
    tab.goto(f"{site}/{page}", wait_until="load")
    if tab.evaluate(FORMULAS):
        tab.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        tab.evaluate("MathJax.startup.promise.then(() => true)")
    return tab, outside


if BROWSER and PAGES:

    @pytest.mark.parametrize("page", PAGES)
    def test_the_page_is_whole_without_a_network(browser, site, page):
        tab, outside = opened(browser, site, page)
        try:
            assert set(outside) <= {BADGE}
            for width in WIDTHS:
                tab.set_viewport_size({"width": width, "height": 900})
                assert tab.evaluate("window.innerWidth") == width
                assert tab.evaluate(OVERFLOW) <= 0, f"wider than a window of {width} pixels"
            assert tab.evaluate(BROKEN_IMAGES) == []
            if tab.locator("article").count():
                assert tab.evaluate(UNSET) == []
                assert LATEX.findall(tab.evaluate(PROSE)) == []
        finally:
            tab.close()

    def test_some_page_has_formulas_and_some_page_has_pictures(browser, site):
        tab, _ = opened(browser, site, "method.html")
        assert tab.evaluate(FORMULAS) > 5
        tab, _ = opened(browser, site, "index.html")
        assert tab.evaluate("document.images.length") > 0
