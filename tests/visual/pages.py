"""A page as a reader without a browser sees it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import rrmsdk
from rrmsdk.models.weights import from_bundle
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.report import Report
from rrmsdk.verification.judge import judging
from rrmsdk.visual.page_images import by_pgd, seen
from tests.attacks.small_network import digits
from tests.bundles import THREAT

TEACHER = "hub:digits-cnn-linf"


class Page(HTMLParser):
    """Every attribute, the text without scripts, the scripts by id, and the tags that were opened and never closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: dict[str, str] = {}
        self.styles, self.words, self.open_ = "", "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, given or "") for name, given in attrs]
        if tag not in self.VOID:
            self.open_.append((tag, dict(attrs).get("id", "")))

    def handle_endtag(self, tag):
        assert self.open_.pop()[0] == tag

    def handle_data(self, data):
        tag, id_ = self.open_[-1] if self.open_ else ("", "")
        if tag == "script":
            self.scripts[id_] = data
        elif tag == "style":
            self.styles += data
        else:
            self.words += data

    def of(self, tag: str, name: str) -> list[str]:
        return [given for one, attribute, given in self.attributes if (one, attribute) == (tag, name)]


def written(bundle, folder: Path, **settings) -> tuple[Page, str]:
    path = rrmsdk.report(bundle, folder / "page.html", **{"quiet": True, "gallery": False, **settings})
    text = path.read_text()
    page = Page(text)
    page.words = " ".join(page.words.split())
    return page, text


def told_otherwise(bundle, **fields) -> bundles.Bundle:
    """The bundle with other things said in its report."""
    written = bundle.path / "other.json"
    value.write(Report(**(bundle.report.model_dump() | fields)), written)
    return bundles.update(bundle, {bundles.REPORT: written})


def seen_with(bundle, labels):
    """Forty images under a short PGD, with other names for the classes."""
    split, network = digits().test.take(40), from_bundle(bundle)
    with judging(network, 0):
        attacked = by_pgd(network, split, THREAT, steps=3, seed=0, batch=20, tell=lambda done, of: None)
    info = bundle.card.data.model_copy(update={"labels": labels})
    return seen(attacked, info, source="", attack="pgd-3", threat=str(THREAT))
