"""What sites say about the use of their pictures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.data.rights import headers_decision, meta_decision, read_robots, read_tdmrep, robots_decision, tdmrep_decision, xrobots_denied

WORDS = ["noai", "NoAI", "noimageai", "noindex", "nofollow", "none", "all", "noarchive", "max-snippet:-1", "max-image-preview:large", ""]
AGENTS = ["", "otherbot:", "vlmplatformbot:", "VLMPlatformBot: ", "a: b:", "max-snippet:"]
values = st.lists(st.tuples(st.sampled_from(AGENTS), st.sampled_from(WORDS)).map("".join), max_size=5).map(", ".join)


@given(st.lists(values, max_size=3), st.booleans())
def test_we_deny_everything_that_img2dataset_denies(headers, with_token):
    agents = ["VLMPlatformBot"] if with_token else []
    words = ("noai", "noimageai", "noindex", "noimageindex")
    assert xrobots_denied(headers, agents, words, "fixed") >= xrobots_denied(headers, agents, words, "reference")


@pytest.mark.parametrize(
    ("headers", "denied"),
    [
        (["noarchive, noai, max-snippet:-1"], True), (["max-snippet:-1, noai"], True), (["none"], True), (["noml"], True), ([" NOAI "], True),
        (["index, follow"], False), (["noarchive"], False), (["nofollow"], False), (["otherbot: noai"], False), (["otherbot: noai, nofollow"], False),
        (["otherbot: nofollow, vlmplatformbot: noai"], True), (["VLMPlatformBot: noai"], True), (["otherbot: noai", "noai"], True), ([], False), ([""], False),
        (["unavailable_after: 25 Jun 2010 15:00:00 GMT"], True), (["unavailable_after: 2010-06-25"], True), (["unavailable_after: 25 Jun 2990 15:00:00 GMT"], False),
        (["unavailable_after: whenever"], False),
    ],
)  # fmt: skip
def test_x_robots_tag_is_read_as_site_software_writes_it(headers, denied):
    decision = headers_decision(headers, [], "VLMPlatformBot")
    assert decision.allowed is not denied
    assert decision.rule == ("x-robots-tag" if denied else "")
    assert decision.evidence == " | ".join(f"X-Robots-Tag: {header}" for header in headers if header)


def test_a_tdm_reservation_denies_and_its_absence_does_not():
    assert headers_decision([], ["1"], "x") == (False, "tdm-reservation", "TDM-Reservation: 1")
    assert headers_decision([], ["0"], "x").allowed
    assert headers_decision([], [], "x").allowed


@pytest.mark.parametrize(
    ("metas", "rule"),
    [
        ([("robots", "noai")], "meta-robots"), ([("ROBOTS", "index, NOIMAGEAI")], "meta-robots"), ([("vlmplatformbot", "noindex")], "meta-robots"),
        ([("googlebot", "noai")], ""), ([("robots", "nofollow")], ""), ([("tdm-reservation", "1")], "tdm-reservation"), ([("description", "noai")], ""),
    ],
)  # fmt: skip
def test_metas_of_a_page_speak_for_its_pictures(metas, rule):
    assert meta_decision(metas, "VLMPlatformBot").rule == rule


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("User-agent: *\nDisallow: /a", "/a/b", False), ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a", "/a", True), ("User-agent: *\nDisallow: /*.png$", "/x.png", False),
        ("User-agent: *\nDisallow: /*.png$", "/x.png?y", True), ("User-agent: vlmplatformbot\nDisallow: /", "/", False),
        ("User-agent: other\nDisallow: /", "/", True), ("", "/", True), ("\0\xff<html>", "/", True),
        ("User-agent: *\nDisallow: /\nUser-agent: VLMPlatformBot\nDisallow:", "/x", True),
    ],
)  # fmt: skip
def test_robots_txt_follows_rfc_9309(text, path, allowed):
    decision = robots_decision(read_robots(text), f"http://a.org{path}", "VLMPlatformBot")
    assert decision.allowed is allowed
    assert allowed or f"http://a.org{path}" in decision.evidence


def test_tdmrep_takes_the_longest_location_and_ignores_nonsense():
    rules = read_tdmrep('[{"location": "/*", "tdm-reservation": 1}, {"location": "/free/*", "tdm-reservation": 0}, 7]')
    assert [tdmrep_decision(rules, path).allowed for path in ("/x", "/free/x", "/")] == [False, True, False]
    assert [read_tdmrep(text) for text in ("", "{", "{}", "7")] == [[], [], [], []]
