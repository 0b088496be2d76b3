"""What the demo's recipes must learn on its held-out pairs: `benchmarks/quality.py` at one seed, its bounds asserted."""

import re
from pathlib import Path

import pytest

from benchmarks import quality
from vlm_core.run import load, run

ROOT = Path(__file__).parents[1]
CHAIN = {  # verb -> where its output goes, what it reads
    "crawl": ("pages", ()),
    "extract": ("candidate_pairs", ("pages",)),
    "download": ("images", ("pairs", "pages")),
    "embed": ("embeddings", ("images", "pairs")),
    "filter": ("filtered", ("pairs", "images", "embeddings")),
    "recaption": ("captions", ("filtered", "pairs", "embeddings", "images")),
    "shard": ("shards", ("pairs", "images", "filtered", "captions")),
    "eval-sets": ("eval_sets", ("shards", "embeddings")),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's snapshot: that of `make demo` where it lies here, else made by the same verbs."""
    if all((ROOT / "data" / name).exists() for name in ("shards/manifest.json", "eval_sets", "embeddings")):
        return ROOT / "data"
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("VLM_HOME", str(folder / "home"))
        for verb, (out, inputs) in CHAIN.items():
            recipe, config = load(verb, None, ROOT / "params.yaml")
            run(verb, config, {name: folder / ("candidate_pairs" if name == "pairs" else name) for name in inputs}, folder / out, recipe=recipe)
    return folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def bounds(line: str) -> tuple[float, float, float]:
    """Value and interval of the first seed of a line of the benchmark."""
    value, low, high = re.search(r"([+-]?\d\.\d{3}) \[([+-]?\d\.\d{3}), ([+-]?\d\.\d{3})\]", line).groups()
    return float(value), float(low), float(high)


def rows_of(lines: list[str], suite: str) -> list[tuple[float, float, float]]:
    return [bounds(line) for line in lines if line.strip().startswith(suite)]


def test_heads_on_packaged_towers_separate_pairs_at_least_as_well_as_the_offline_scorer(data: Path, tmp_path: Path) -> None:
    """Issue: AUC of at least .80 on the pooled held-out pairs, and no worse than the scorer, pair by pair."""
    lines = [*quality.pretrained("lit_packaged", 1, data, tmp_path), *quality.scored(1, data, tmp_path, quality.offline_scorer())]
    lit, scorer, gain = rows_of(lines, quality.AUC)
    assert lit[1] >= 0.80
    assert scorer[1] > 0.5  # it is a scorer, and not a broken one that everybody beats
    assert gain[0] == pytest.approx(lit[0] - scorer[0], abs=0.0016)  # three figures rounded
    assert gain[1] > -0.02  # not worse by more than the margin of the gate


def test_a_small_clip_from_scratch_retrieves_three_times_better_than_chance_for_certain(data: Path, tmp_path: Path) -> None:
    lines = list(quality.pretrained("clip_tiny", 1, data, tmp_path))
    text, image = (float(found) for found in re.search(r"text (\d\.\d+), image (\d\.\d+)", lines[0]).groups())
    assert rows_of(lines, "heldout/retrieval/text_retrieval_recall_at_10")[0][1] > 3 * text
    assert rows_of(lines, "heldout/retrieval/image_retrieval_recall_at_10")[0][1] > 3 * image
