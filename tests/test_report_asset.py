"""The asset `report`, materialised: the page is there, and Dagster's metadata leads to it."""

from pathlib import Path

import dagster as dg
import pytest

from assets.report import report
from pipelines.resources import Launcher
from tests.data.test_report import make_world


@pytest.mark.flow
def test_the_asset_links_its_page_and_shows_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    made = make_world(tmp_path / "data")
    made["pairs"].rename(tmp_path / "data" / "candidate_pairs")
    result = dg.materialize([report], resources={"launcher": Launcher(root=str(tmp_path))}, selection=[report])
    (event,) = result.asset_materializations_for_node("report")
    page = Path(str(event.metadata["page"].value))
    assert page == tmp_path / "data" / "report" / "index.html"
    assert page.read_text().startswith("<!doctype html>")
    assert str(event.metadata["from candidates to shards"].value).startswith("![funnel](data:image/png;base64,")
    assert event.metadata["in"].value == 13
