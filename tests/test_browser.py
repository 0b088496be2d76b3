"""The pages for people in a real browser: they show what they should, and hostile captions do nothing. `make slow`, because a browser is needed."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.browser import Page, browser
from tests.data.test_report import HOSTILE, make_world
from tests.test_search_changes import SNAPSHOT, Service, kept, metadata, republish, service
from vlm_core import run as seam
from vlm_core.data.report.config import DatasetPage
from vlm_core.data.shards.tar import read_tar

__all__ = ["service"]
pytestmark = pytest.mark.slow


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "browser") as opened:
        yield opened


def shown(page: Page) -> list[str]:
    found: list[str] = page.ask("[...document.querySelectorAll('main figure')].map(f => f.id)")
    return found


def test_a_person_searches_looks_why_goes_on_and_uploads_a_picture(service: Service, page: Page, tmp_path: Path) -> None:
    address, data = f"http://127.0.0.1:{service.port}", service.data
    page.open(f"{address}/")
    assert shown(page) == []
    page.ask(f"document.querySelector('input[name=q]').value = 'a red flag'; document.querySelector('select[name=snapshot]').value = '{SNAPSHOT}'")
    page.follow("form button")
    assert len(shown(page)) > 5
    assert set(shown(page)) <= service.uids(text="a red flag", snapshot=SNAPSHOT)
    assert page.ask("document.querySelector('main img').naturalWidth") > 0
    assert page.ask("document.querySelector('select[name=snapshot]').value") == SNAPSHOT
    first = shown(page)[0]
    page.follow(f"figure[id='{first}'] a[href^='/why']")
    assert page.ask("document.querySelector('h1').textContent") == "Why is it in?"
    assert page.ask("document.querySelector('code').textContent") == first
    assert page.ask("[...document.querySelectorAll('h2')].map(h => h.textContent)")[:3] == ["sample", "fate", "decisions"]
    page.open(f"{address}/?q=flag")
    page.follow("main figure a[href^='/?uid']")
    assert len(shown(page)) > 5
    uid = kept(data)[2]
    (tmp_path / "query.jpg").write_bytes(dict(read_tar(data / "images" / "00000.tar"))[f"{uid}.jpg"])
    page.choose("input[type=file]", tmp_path / "query.jpg")
    page.follow("form[method=post] button")
    assert shown(page)[0] == uid
    assert page.problems == []


def test_a_hostile_caption_is_text_in_the_search_page(service: Service, page: Page) -> None:
    table = pq.read_table(service.data / "embeddings" / "metadata" / "metadata_0.parquet")
    rows = metadata(service.data)
    for name, value in (("caption", HOSTILE), ("url", "javascript:document.title='owned'"), ("lang", '"><script>document.title="owned"</script>')):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([value] * len(rows)))
    pq.write_table(table, service.data / "embeddings" / "metadata" / "metadata_0.parquet")
    republish(service.data, kept(service.data))
    page.open(f"http://127.0.0.1:{service.port}/?q={quote(HOSTILE)}")
    assert len(shown(page)) > 5
    assert page.ask("document.querySelector('main figcaption span').textContent") == HOSTILE
    assert page.ask("document.querySelectorAll('script, main [onerror], a[href^=javascript]').length") == 0
    assert page.ask("document.title") == "Search the filtered set"
    assert page.problems == []


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_the_dataset_page_opens_from_a_file_on_a_desk_and_on_a_phone(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, scheme: str
) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    world = make_world(tmp_path / "world")
    seam.run("report", DatasetPage(), world, tmp_path / "report")
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open((tmp_path / "report" / "index.html").as_uri())
    page.ask("Promise.all([...document.images].map(i => {i.loading = 'eager'; return i.decode()}))")
    assert page.ask("[...document.images].filter(i => !i.naturalWidth).length") == 0
    assert page.ask("document.images.length") > 10
    assert page.ask("document.documentElement.scrollWidth") <= width  # nothing sticks out at the side
    red, green, blue = map(int, page.ask("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").removesuffix(")").split(","))
    assert (max(red, green, blue) < 60) == (scheme == "dark")
    assert page.ask("document.querySelectorAll('svg rect').length") >= 80
    assert page.ask("document.scripts.length") == 0
    assert page.ask("document.title") == "Dataset report"
    assert page.ask(f"[...document.querySelectorAll('.clip')].filter(c => c.textContent == {HOSTILE!r}).length") >= 1
    assert page.problems == []
