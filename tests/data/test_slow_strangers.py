"""What strangers write must not hold a run up: patterns, lists of sources, pictures that a decoder does not come back from. CPU times, not wall times."""

import io
import re
import time
from urllib.parse import quote

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.loopback import body, encoded, png, web
from tests.data.test_download import download, settings, write_pairs
from vlm_core.data.crawl.config import Fetch
from vlm_core.data.crawl.html import parse_srcset
from vlm_core.data.web.rights import matches, read_robots, read_tdmrep, robots_decision, tdmrep_decision


def cpu_s(work):
    begin = time.process_time()
    work()
    return time.process_time() - begin


@given(st.text("ab*$", max_size=7), st.text("ab$", max_size=9))
def test_a_pattern_matches_what_its_regular_expression_matches(pattern, path):
    core, is_whole = pattern.removesuffix("$"), pattern.endswith("$")
    expression = re.escape(core).replace(r"\*", ".*") + (r"\Z" if is_whole else "")
    assert matches(pattern, path) is (re.match(expression, path) is not None)


def test_a_location_full_of_stars_costs_no_time():
    rules = read_tdmrep('[{"location": "/' + "*a" * 200 + '*b", "tdm-reservation": 1}]')
    assert cpu_s(lambda: tdmrep_decision(rules, "/" + "a" * 2_000)) < 0.2
    assert tdmrep_decision(rules, "/" + "a" * 2_000).allowed
    assert not tdmrep_decision(rules, "/" + "a" * 2_000 + "b").allowed


def test_the_deciding_rule_among_very_many_is_found_at_once():
    text = "User-agent: *\nDisallow: /p\n" + "".join(f"Disallow: /x*{number}*y\n" for number in range(20_000))
    robots = read_robots(text)
    decision = robots_decision(robots, f"http://a.org/p{quote('é')}?q=1", "VLMPlatformBot", text)
    assert decision.evidence.endswith("(Disallow: /p)")
    assert cpu_s(lambda: robots_decision(robots, "http://a.org/p", "VLMPlatformBot", text)) < 0.5


@pytest.mark.parametrize("text", [" " * 200_000 + "a", "a" + " " * 200_000, "," * 200_000, "a " * 100_000, "a" * 200_000, "a, " * 60_000, "a,b" * 60_000])
def test_a_long_srcset_is_read_in_a_time_that_grows_with_its_length(text):
    assert cpu_s(lambda: parse_srcset(text)) < 0.5


def slow_picture():
    """A progressive JPEG that repeats its last scan 200 times: 150 kB that take a decoder some 5 s of CPU."""
    data = encoded(Image.new("L", (6_000, 6_000), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + 200 * last + data[-2:]


@pytest.mark.flow
def test_a_picture_that_decodes_for_too_long_is_given_up_and_the_others_are_not(tmp_path):
    with web({"/slow": body(slow_picture()), "/ok": body(png())}) as site:
        pairs = write_pairs(tmp_path / "pairs", ("http://a.test/slow", "a"), ("http://a.test/ok", "b"))
        fetch = Fetch(retries=0, deadline_s=10, max_decoded_mb=300, decode_s=1.0)
        rows, _ = download(tmp_path, pairs, settings(site, fetch=fetch))
    found = {url: (row["status"], row["detail"]) for (url, _), row in rows.items()}
    assert found == {"http://a.test/slow": ("decode_error", "the decoder died or took too long"), "http://a.test/ok": ("ok", None)}
    assert site.count("/slow") == 1


@pytest.mark.flow
def test_a_single_downloading_process_has_a_limit_of_memory_too(tmp_path):
    limits = []

    def look(request):
        engines = [child for child in psutil.Process().children(recursive=True) if "vlm_core.data.fetch.img2dataset_worker" in child.cmdline()]
        limits.extend(engine.rlimit(psutil.RLIMIT_AS)[0] for engine in engines)
        body(png())(request)

    with web({"/ok": look}) as site:
        download(tmp_path, write_pairs(tmp_path / "pairs", ("http://a.test/ok", "a")), settings(site))
    assert limits == [6 * 2**30]


def test_a_slow_picture_is_one_that_would_else_be_kept():
    assert Image.open(io.BytesIO(slow_picture())).size == (6_000, 6_000)
