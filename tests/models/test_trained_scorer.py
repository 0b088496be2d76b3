"""A data filtering network, end to end: trusted subset, training, scores, filtered set, and the lines that the catalog draws between them."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data import filter_world
from tests.data.filter_world import World, encoded
from tests.train import tiny
from vlm_core import run as runner
from vlm_core import stage
from vlm_core.cli import main
from vlm_core.data.config import Embed, ModelScorer, Shard
from vlm_core.data.eval_sets.eval_sets import TABLE
from vlm_core.data.eval_sets.known import read_known
from vlm_core.data.fetch.stored import Pictures
from vlm_core.data.filter.config import Domains, Filter, Grouping
from vlm_core.data.filter.cut_config import Cut
from vlm_core.data.filter.perceptual import pdq, phash, to_hex
from vlm_core.data.lineage.catalog import open_catalog
from vlm_core.data.sample import CAPTIONS
from vlm_core.data.shards.shards import read_samples
from vlm_core.data.shards.tar import TarWriter
from vlm_core.errors import CheckpointError, ConfigError, DataError, Incompatible, MissingInput
from vlm_core.models import scorer as scorers
from vlm_core.models import trained_scorer
from vlm_core.stage import Report
from vlm_core.track import MlflowTracker, Registry

GROUPS = Grouping(pdq_bits=0, phash_bits=0)  # shapes of 32 px look alike to every hash
PATTERN = filter_world.picture(77, 128)


def shapes() -> World:
    """Eight pictures of each of 48 sentences on a trusted site; on another site four more of each, every second one under the sentence of another picture."""
    world, random = World(), np.random.default_rng(0)
    sentences = [(colour, shape, place) for colour in tiny.COLOURS for shape in tiny.SHAPES for place in tiny.PLACES]
    for number, (colour, shape, place) in enumerate(sentences):
        for copy in range(12):
            image = Image.open(io.BytesIO(tiny.picture(colour, shape, place, random)))
            wrong = copy >= 8 and copy % 2 == 1
            said = sentences[(number + 17) % len(sentences)] if wrong else (colour, shape, place)
            site = "trusted.test" if copy < 8 else "noisy.test"
            world.add("a {} {} on the {}".format(*said), image, url=f"http://{site}/{number}/{copy}{'-wrong' if wrong else ''}.png", size=900)
    world.add("a pattern of many colours", PATTERN, url="http://trusted.test/pattern.png")
    return world


def eval_sets(folder: Path, pictures: dict[str, bytes]) -> Path:
    """One dataset of the layout of `vlm eval-sets`, all of it test pictures."""
    out = folder / "emoji_groups"
    out.mkdir(parents=True)
    rows = []
    with TarWriter(out / "images.tar") as tar:
        for key, data in sorted(pictures.items()):
            tar.add(f"{key}.png", data)
            rows.append({"key": key, "split": "test", "label": 0, "classname": "a", "group": key, "style": "noto", "sha256": f"{key:0>64}"})
    pq.write_table(pa.Table.from_pylist(rows, TABLE), out / "table.parquet")
    (out / "dataset.json").write_text(json.dumps({"name": "emoji_groups", "classnames": ["a"], "templates": ["{}"], "metric": "acc1"}))
    return folder


class Flow:
    """The stages by hand, as a shell would call them."""

    def __init__(self, root: Path) -> None:
        self.root, self.inputs = root, shapes().write(root / "in")
        path = self.inputs["images"] / "status.parquet"
        table = pq.read_table(path)
        sizes = pa.array([32] * len(table), pa.int32())
        pq.write_table(table.drop_columns(["width", "height"]).append_column("width", sizes).append_column("height", sizes), path)
        (root / "captions").mkdir()
        pq.write_table(CAPTIONS.empty_table(), root / "captions" / "captions.parquet")

    def run(self, verb: str, config: Any, name: str, **inputs: Path) -> Report:
        return runner.run(verb, config, inputs, self.root / name, recipe=name)

    def model(self, name: str, rules: Filter, embeddings: Path, *changes: str) -> Path:
        """filter, shard, pretrain."""
        data = {"pairs": self.inputs["pairs"], "images": self.inputs["images"]}
        self.run("filter", rules, f"{name}_filtered", **data, embeddings=embeddings)
        self.run("shard", Shard(held_out=0.25), f"{name}_shards", **data, filtered=self.root / f"{name}_filtered", captions=self.root / "captions")
        self.run("pretrain", tiny.small(*changes), name, shards=self.root / f"{name}_shards")
        return self.root / name

    def embed(self, name: str, scorer_of: ModelScorer | None = None, **more: Path) -> Report:
        return self.run("embed", Embed(scorer=scorer_of or ModelScorer()), name, pairs=self.inputs["pairs"], images=self.inputs["images"], **more)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    root = tmp_path_factory.mktemp("dfn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_HOME", str(root / "home"))
        made = Flow(root)
        made.model("network", Filter(domains=Domains(only=["trusted.test"]), group=GROUPS), made.inputs["embeddings"], "fit.epochs=12", "prints=true")
        clean = eval_sets(root / "eval_sets", {str(seed): encoded(filter_world.picture(seed, 96)) for seed in range(200, 210)})
        made.embed("embeddings", scorer=root / "network", eval_sets=clean)
        noisy = Filter(domains=Domains(only=["noisy.test"]), cuts={"clip": Cut(fraction=0.5, within="all")}, group=GROUPS)
        made.model("student", noisy, root / "embeddings", "fit.epochs=1", "loader.batch_size=16")
    return made


def bare(flow: Flow, folder: Path) -> Path:
    """The network as it was before models said what they know."""
    shutil.copytree(flow.root / "network", folder / "bare", ignore=shutil.ignore_patterns("trained_on.parquet"))
    return folder / "bare"


@pytest.fixture(autouse=True)
def home(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(flow.root / "home"))


def test_the_network_keeps_right_captions_and_drops_wrong_ones(flow: Flow) -> None:
    url = {row["uid"]: row["url"] for row in pq.read_table(flow.inputs["pairs"] / "pairs.parquet").to_pylist()}
    kept = [url[uid] for uid in pq.read_table(flow.root / "student_filtered" / "kept.parquet")["uid"].to_pylist()]
    assert len(kept) == 96
    assert sum("wrong" not in address for address in kept) / len(kept) > 0.85  # half of the pool is right


def test_its_scores_are_those_of_the_model_for_picture_and_caption(flow: Flow) -> None:
    embeddings = flow.root / "embeddings"
    rows = pq.read_table(embeddings / "metadata" / "metadata_0.parquet").to_pylist()[:40]
    scorer = scorers.load(embeddings)
    assert isinstance(scorer, trained_scorer.Trained)
    assert scorer.name == "model:network"
    store = Pictures(flow.inputs["images"]).image
    image, text = scorer.encode_images([store(row["uid"]) for row in rows]), scorer.encode_texts([row["caption"] for row in rows])
    assert [row["score"] for row in rows] == pytest.approx(np.einsum("nd,nd->n", image, text).tolist(), abs=1e-5)
    stored = np.load(embeddings / "img_emb" / "img_emb_0.npy")[:40].astype(np.float32)
    assert np.abs(stored - image).max() < 1e-3


def test_the_catalog_links_what_was_filtered_to_the_network_and_to_its_data(flow: Flow) -> None:
    con = open_catalog(flow.root / "home" / "catalog")
    ids = {name: json.loads((flow.root / name / "config.json").read_text())["weights_sha256"] for name in ("network", "student")}
    assert con.sql("SELECT parent_model_id, relation FROM model_links WHERE model_id = ?", params=[ids["student"]]).fetchall() == [
        (ids["network"], "filtered by")
    ]
    ways = dict(con.sql("SELECT how, count(DISTINCT uid) FROM model_samples WHERE model_id = ? GROUP BY how", params=[ids["student"]]).fetchall())
    trained = con.sql("SELECT count(DISTINCT uid) FROM model_samples WHERE model_id = ?", params=[ids["network"]]).fetchall()[0][0]
    assert ways["filtered by"] == trained > 300
    assert con.sql("SELECT count(*) FROM model_links WHERE model_id = ?", params=[ids["network"]]).fetchall() == [(0,)]


def test_why_tells_the_trail_of_a_sample_and_the_models_that_it_formed(flow: Flow, capsys: pytest.CaptureFixture[str]) -> None:
    index = pq.read_table(flow.root / "network_shards" / "index.parquet")
    uid = next(row["uid"] for row in index.to_pylist() if row["split"] == "train")
    assert main(["why", uid]) == 0
    said = capsys.readouterr().out
    assert [word for word in ("downloaded", "domains", "trusted.test", "network", "student", "filtered by") if word not in said] == []
    assert main(["why", "0" * 32]) == 20


def test_a_scorer_that_knows_a_test_picture_is_refused(flow: Flow, tmp_path: Path) -> None:
    smaller = PATTERN.resize((110, 110))  # other bytes, same look
    dirty = eval_sets(tmp_path / "eval_sets", {"1": encoded(filter_world.picture(5, 96)), "2": encoded(smaller)})
    for inputs in ({"scorer": flow.root / "network"}, {"scorer": bare(flow, tmp_path), "trained_on": flow.root / "network_shards"}):
        with pytest.raises(DataError, match=r"Found test pictures that the scorer was trained on, or look-alikes of those \(emoji_groups 1\), expected none"):
            flow.embed("refused", **inputs, eval_sets=dirty)
        assert not (flow.root / "refused").exists()


def test_what_the_network_knows_is_what_it_was_trained_on_and_travels_with_its_embeddings(flow: Flow) -> None:
    trained = {sample.record["sha256"]: sample for sample in read_samples(flow.root / "network_shards", "train")}
    for folder in ("network", "embeddings"):
        known = read_known(flow.root / folder)
        assert {look.sha256 for look in known} == set(trained)
        assert not any(look.caption or "http" in look.uid for look in known)
    pattern = next(look for look in known if look.quality >= 50)
    pixels = np.asarray(Image.open(io.BytesIO(trained[pattern.sha256].jpeg)).convert("RGB"))
    assert (pattern.pdq, pattern.phash) == (to_hex(pdq(pixels)[0]), to_hex(phash(pixels)))


def test_the_network_scores_again_when_its_own_choice_has_replaced_the_shards_and_test_sets(flow: Flow, tmp_path: Path) -> None:
    versions = []
    for _ in range(2):  # each time the platform's folders hold what the run before left in them
        report = flow.embed("twice_embeddings", scorer=flow.root / "network")
        rules = Filter(domains=Domains(only=["noisy.test"]), cuts={"clip": Cut(fraction=0.5, within="all")}, group=GROUPS)
        flow.model("twice", rules, flow.root / "twice_embeddings", "fit.epochs=1", "loader.batch_size=16")
        versions.append((report.data_version, stage.data_version(flow.root / "twice_shards")))
        shutil.rmtree(flow.root / "twice_embeddings.run")  # nothing is reused
    assert versions[0] == versions[1]
    assert read_known(flow.root / "twice_embeddings") == read_known(flow.root / "network")


def test_a_network_that_starts_from_a_model_also_knows_what_that_was_trained_on(flow: Flow, tmp_path: Path) -> None:
    shards, changes = flow.root / "student_shards", ("fit.epochs=1", "loader.batch_size=16", "prints=true")
    flow.run("pretrain", tiny.small(*changes), "heir", shards=shards, initial=flow.root / "network")
    own = {sample.record["sha256"] for sample in read_samples(shards, "train")}
    before = {look.sha256 for look in read_known(flow.root / "network")}
    assert {look.sha256 for look in read_known(flow.root / "heir")} == own | before
    assert own - before
    with pytest.raises(ConfigError, match=r"Found prints=true with the initial model .*, which does not say what it was trained on"):
        flow.run("pretrain", tiny.small(*changes), "nobody", shards=shards, initial=bare(flow, tmp_path))


def test_a_scorer_that_does_not_say_what_it_knows_is_not_used_unchecked_unless_somebody_says_so(flow: Flow, tmp_path: Path) -> None:
    network = bare(flow, tmp_path)
    with pytest.raises(ConfigError, match=r"Found no trained_on.parquet in .* and no --in trained_on=PATH beside it"):
        flow.embed("refused", scorer=network)
    with pytest.raises(Incompatible, match=r"Found the shards .* as trained_on, expected .*, which the scorer was trained on"):
        flow.embed("refused", scorer=network, trained_on=flow.root / "student_shards", eval_sets=flow.root / "eval_sets")
    report = flow.embed("unchecked", ModelScorer(unchecked=True), scorer=network)
    assert report.counts["embedded"] == 48 * 12 + 1


def test_embeddings_whose_model_was_replaced_are_refused(flow: Flow, tmp_path: Path) -> None:
    embeddings = flow.root / "embeddings"
    record = embeddings.with_name("embeddings.run") / "spec.json"
    before = record.read_text()
    spec = json.loads(before)
    spec["inputs"]["scorer"] = str(flow.root / "student")
    record.write_text(json.dumps(spec))
    try:
        with pytest.raises(CheckpointError, match="Found the scorer model:student of version"):
            scorers.load(embeddings)
    finally:
        record.write_text(before)


@pytest.mark.slow
def test_a_registered_network_is_fetched_by_alias_or_version_and_scores_the_same(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    weights = json.loads((flow.root / "network" / "config.json").read_text())["weights_sha256"]
    tracker, registry = MlflowTracker(uri, "register"), Registry(uri)
    version = registry.register("filter-network", {"": flow.root / "network"}, {"weights_sha256": weights}, {}, tracker.run_id)
    registry.point("champion", version)
    tracker.close()
    folder = trained_scorer.registered("filter-network@champion")
    assert folder == flow.root / "home" / "models" / weights
    assert trained_scorer.registered(f"filter-network:{version.version}") == folder
    assert (folder / "model.safetensors").read_bytes() == (flow.root / "network" / "model.safetensors").read_bytes()
    report = flow.embed("registered", ModelScorer(model="filter-network@champion"))
    before = json.loads((flow.root / "embeddings.run" / "result.json").read_text())
    assert report.data_version == before["data_version"]
    assert Embed(scorer=ModelScorer(model="filter-network@champion")).reads_the_world  # the alias may point elsewhere tomorrow
    assert scorers.load(flow.root / "registered").version == scorers.load(flow.root / "embeddings").version
    with pytest.raises(MissingInput, match="Found no 'filter-network@nobody' in the registry"):
        trained_scorer.registered("filter-network@nobody")
    with pytest.raises(ConfigError, match="Found the model 'filter-network', expected a model's folder, or NAME@ALIAS or NAME:VERSION"):
        trained_scorer.registered("filter-network")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="Found no MLFLOW_TRACKING_URI in the environment"):
        trained_scorer.registered("filter-network@champion")
