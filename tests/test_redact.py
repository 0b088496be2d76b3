"""Secrets that addresses carry reach the data and nothing beside it."""

import json

import pyarrow.parquet as pq
import pytest

from tests.data.loopback import body, web
from vlm_core.cli import main
from vlm_core.data.sample import make_uid
from vlm_core.redact import redacted

CANARY = "canary7f3a"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("http://a.org/x.png?token=abc&w=3", "http://a.org/x.png?token=REDACTED&w=3"),
        ("s3://b/k?X-Amz-Date=1&X-Amz-Credential=AK%2F1&X-Amz-Signature=ff#top", "s3://b/k?X-Amz-Date=1&X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED#top"),
        ("see http://a.org/?sv=1&sig=a%2Bb%3D, 'http://a.org/?access_token=q'", "see http://a.org/?sv=1&sig=REDACTED 'http://a.org/?access_token=REDACTED'"),
        ("http://me:pw@a.org/x", "http://REDACTED@a.org/x"), ("http://a.org/x?monkey=1&keyword=2&design=3", "http://a.org/x?monkey=1&keyword=2&design=3"),
        ("token=abc in words", "token=abc in words"), ("mail me@a.org or http://a.org/@user", "mail me@a.org or http://a.org/@user"),
    ],
)  # fmt: skip
def test_only_the_secret_of_an_address_is_taken_out(text, seen):
    assert redacted({"a": [text, 7, None]}) == {"a": [seen, 7, None]}
    assert redacted(seen) == seen


@pytest.mark.abuse("A10")
@pytest.mark.flow
def test_a_presigned_source_and_tokens_in_picture_addresses_stay_out_of_records_reports_and_errors(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    picture = f"http://a.test/x.png?token={CANARY}"
    with web({f"/list.csv?X-Amz-Signature={CANARY}": body(f"url,caption\n{picture},a fox\n".encode(), "text/csv")}) as site:
        source = f"source.path=http://{site.address}/list.csv?X-Amz-Signature={CANARY}"
        assert main(["crawl", "--recipe", "table_crawl", "--set", source, "--out", str(tmp_path / "pages"), "--json"]) == 0
        missing = source.replace("/list.csv", "/none.csv")
        assert main(["crawl", "--recipe", "table_crawl", "--set", missing, "--out", str(tmp_path / "none")]) != 0
    assert main(["extract", "--in", f"pages={tmp_path / 'pages'}", "--out", str(tmp_path / "pairs"), "--json"]) == 0
    said = capfd.readouterr()
    assert CANARY not in said.out + said.err
    holding = {file.relative_to(tmp_path).parts[0] + "/" + file.name for file in tmp_path.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()}
    assert not [name for name in holding if name.startswith(("pages.run", "none", "pairs.run"))], "records of runs"
    row = pq.read_table(tmp_path / "pairs" / "pairs.parquet").to_pylist()[0]
    assert (row["url"], row["uid"]) == (picture, make_uid(picture, "a fox")), "data keeps what is needed to fetch"
    spec = tmp_path / "pages.run" / "spec.json"
    assert json.loads(spec.read_text())["config"]["source"]["path"].endswith("X-Amz-Signature=REDACTED")
    assert main(["crawl", "--spec", str(spec), "--out", str(tmp_path / "again")]) == 20
    assert "without its secret" in capfd.readouterr().err
