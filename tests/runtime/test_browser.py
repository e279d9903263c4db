"""The page at `/` in a real browser: a file is dropped onto it, and what the model says is there to be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.chromium import browser
from tests.runtime.http_served import Served, ask, serving
from tests.served import some_digits


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (pixels,) = (255 * some_digits(1)[0]).round().astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


@pytest.mark.slow
def test_an_image_that_is_dropped_is_answered_as_predict_answers_it(
    served: Served, image: Path, tmp_path: Path
) -> None:
    _, told, _ = ask(served, "POST", "/predict", image.read_bytes(), {"Content-Type": "image/png"})
    with browser(tmp_path / "profile") as tab:
        tab.tell("Page.navigate", url=f"{served.url}/")
        tab.until("document.readyState === 'complete' && at('about').rows.length > 0")
        tab.drop(image, "at('drop')")
        tab.until("!at('seen').hidden")
        assert tab.value("at('label').textContent") == told["label"]
        assert tab.value("at('sure').textContent").startswith(f"{100 * told['confidence']:.1f} % sure")
        rows = json.loads(tab.value("JSON.stringify([...at('classes').rows].map(one => one.cells[0].textContent))"))
        assert rows == [one["label"] for one in told["classes"]]
        assert tab.value("at('image').naturalWidth") == 8
        assert not tab.value("at('drop').classList.contains('over')")
        assert tab.complaints == []


@pytest.mark.slow
def test_what_is_no_image_is_said_on_the_page(served: Served, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with browser(tmp_path / "profile") as tab:
        tab.tell("Page.navigate", url=f"{served.url}/")
        tab.until("document.readyState === 'complete' && at('about').rows.length > 0")
        tab.drop(tmp_path / "note.txt", "at('drop')")
        tab.until("at('error').textContent")
        assert tab.value("at('error').textContent") == "that is no PNG and no JPEG image"
        assert tab.value("at('seen').hidden")


@pytest.mark.slow
def test_a_page_of_a_server_with_a_token_asks_for_it(versions: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-the-page-x")
    with (
        serving(models=versions, name="digits", token_file=tmp_path / "token") as guarded,
        browser(tmp_path / "profile") as tab,
    ):
        tab.tell("Page.navigate", url=f"{guarded.url}/")
        tab.until("document.readyState === 'complete' && !at('door').hidden")
        assert tab.value("at('about').rows.length") == 0
        tab.value("at('token').value = 'a-token-of-the-page-x'; at('door').requestSubmit()")
        tab.until("at('about').rows.length > 0 && at('door').hidden")
        tab.drop(image, "at('drop')")
        tab.until("!at('seen').hidden")
