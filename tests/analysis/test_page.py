"""Test that pages sort tables, fetch nothing and are whole, in a browser where one is installed."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from stssl.analysis.page import SCRIPT, page
from stssl.analysis.tables import Cell, table

EVIL = "<img src=x onerror=alert(1)>"
CLICKS = """<script>
window.onerror = words => document.title += " error " + words;
const order = () => [...document.querySelectorAll("tbody tr")].map(row => row.cells[0].textContent).join("");
const buttons = document.querySelectorAll("th button"), found = [order()];
for (const number of [1, 1, 0, 0]) { buttons[number].click(); found.push(order()); }
document.title = found.join(" ");
</script>"""


def made():
    rows = [["b", Cell("0.5 ± 0.1", 0.5)], ["a", Cell("10", 10.0)], ["d", None], ["c", Cell("9", 9.0)]]
    return page(EVIL, [EVIL, table(["name", EVIL], rows, {"name": "'><b>"})])


class Tags(HTMLParser):
    """Collect the tags of a page, and those that were not closed."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_and_fetches_nothing():
    text, tags = made(), Tags()
    tags.feed(text)
    assert tags.open == [] and not any(tag in ("img", "link", "b") for tag, _ in tags.found)
    assert sum(tag == "script" for tag, _ in tags.found) == 1
    assert not re.search(r"https?://", text) and "default-src 'none'" in text.replace("&#39;", "'")


def test_numbers_are_sorted_by_value_and_missing_ones_are_marked():
    text = table(["name", "value"], [["a", Cell("1e3", 1000.0)], ["b", None]])
    assert "data-value='1000.0'" in text and "data-value=''" in text and "class='text'>a" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_click_sorts_and_the_console_has_no_errors(tmp_path):
    """The page's rules allow only its own script. Take them out to click, and leave them in to see that they hold."""

    def title(text, name):
        (tmp_path / name).write_text(text)
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / name).as_uri()]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return re.search("<title>(.*?)</title>", done.stdout)[1], done.stderr

    free = re.sub(r"<meta http-equiv[^>]*>", "", made()).replace("</body>", CLICKS + "</body>")
    words, log = title(free, "free.html")
    assert words == "badc acbd bcad abcd dcba", words
    assert "CONSOLE" not in log
    words, log = title(made().replace("</body>", CLICKS + "</body>"), "ruled.html")
    assert words.startswith("&lt;img") and "CONSOLE" in log, "a script that is not the page's own must not run"
    assert "CONSOLE" not in title(made(), "own.html")[1]
    assert isinstance(SCRIPT, Markup)
