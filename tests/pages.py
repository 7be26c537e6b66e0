"""What tests of pages share; the fixtures that open them are in `conftest.py`."""

from html.parser import HTMLParser


class Tags(HTMLParser):
    """All start tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.skipping = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.skipping = tag in ("script", "style")

    def handle_data(self, data):
        if not self.skipping:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def check_drawn(tab, path, num_figures):
    sizes = tab.evaluate(
        "[...document.querySelectorAll('.chart')].map(place => {"
        "const box = place.querySelector('svg')?.getBoundingClientRect();"
        "return [place.dataset.drawn, box?.width ?? 0, box?.height ?? 0]; })"
    )
    assert len(sizes) == num_figures
    assert all(drawn == "yes" and width > 100 and height > 50 for drawn, width, height in sizes)
    assert [url for url in tab.asked if not url.startswith("data:")] == [path.resolve().as_uri()]
    assert tab.complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page itself scrolls sideways"
