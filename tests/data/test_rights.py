"""What sites say about the use of their pictures."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.loopback import QUICK, body, encoded, png, web
from vlm_core.data.web.c2pa import c2pa_decision
from vlm_core.data.crawl.config import OptOuts
from vlm_core.data.fetch.fetch import Fetcher
from vlm_core.data.web.rights import (
    ai_txt_decision,
    headers_decision,
    meta_decision,
    read_robots,
    read_tdmrep,
    robots_decision,
    tdmrep_decision,
    xrobots_denied,
)

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
        (["otherbot: nofollow, vlmplatformbot: noai"], True), (["VLMPlatformBot: noai"], True), (["otherbot: noai", "noai"], True), (["*: noai"], True), (["otherbot: all, *: noai"], True), (["*: all, otherbot: noai"], False), ([], False), ([""], False),
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


def test_the_words_that_deny_are_those_of_the_profile_in_metas_too():
    assert meta_decision([("robots", "nosnippet")], "VLMPlatformBot", ["nosnippet"]).rule == "meta-robots"
    assert meta_decision([("robots", "noai")], "VLMPlatformBot", ["nosnippet"]).allowed


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


def test_the_evidence_of_robots_txt_names_the_rule_of_our_group_that_decided():
    text = "User-agent: *\nDisallow: /\n\nUser-agent: OtherBot\nUser-agent: VLMPlatformBot # us\nDisallow: /a\nDisallow: /a/*.png$\nAllow: /a/free\n"
    decision = robots_decision(read_robots(text), "http://a.org/a/x.png", "VLMPlatformBot", text)
    assert decision == (False, "robots.txt", "robots.txt disallows http://a.org/a/x.png for VLMPlatformBot (Disallow: /a/*.png$)")
    assert robots_decision(read_robots(text), "http://a.org/b", "VLMPlatformBot", text).allowed


SPAWNING = "# Spawning AI\nUser-Agent: *\nDisallow: *.jpg\nDisallow: *.png\nAllow: *.webp\n"


@pytest.mark.parametrize(
    ("text", "url", "allowed"),
    [
        (SPAWNING, "http://a.org/x/y.jpg", False), (SPAWNING, "http://a.org/y.png?size=2", False), (SPAWNING, "http://a.org/y.webp", True),
        (SPAWNING, "http://a.org/y", True), ("User-Agent: *\nDisallow: /\nDisallow: *\n", "http://a.org/y.webp", False),
        ("User-Agent: *\nDisallow: /\nAllow: *.jpg\n", "http://a.org/y.jpg", True), ("User-Agent: *\nDisallow: /\nAllow: *.jpg\n", "http://a.org/y.gif", False),
        ("User-Agent: VLMPlatformBot\nDisallow: /\n", "http://a.org/y.gif", False), ("User-Agent: GPTBot\nDisallow: /\n", "http://a.org/y.gif", True), ("", "http://a.org/y", True),
    ],
)  # fmt: skip
def test_ai_txt_speaks_about_file_types(text, url, allowed):
    decision = ai_txt_decision(read_robots(text), url, "VLMPlatformBot", text)
    assert decision.allowed is allowed
    assert decision.rule == ("" if allowed else "ai.txt")


# ---------------------------------------------------------------- what a picture says about itself


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def jumbf(label, content, kind=b"json"):
    described = box(b"jumd", bytes(16) + b"\x03" + label + b"\0")
    return box(b"jumb", described + box(kind, content))


def manifest(use, label=b"c2pa.training-mining", coding="json", entry="c2pa.ai_training"):
    if coding == "json":
        content = f'{{"entries": {{"{entry}": {{"use": "{use}"}}}}}}'.encode()
    else:  # {"entries": {entry: {"use": use}}} in CBOR
        text = lambda word: (bytes([0x60 + len(word)]) if len(word) < 24 else bytes([0x78, len(word)])) + word.encode()  # noqa: E731
        content = b"\xa1" + text("entries") + b"\xa1" + text(entry) + b"\xa1" + text("use") + text(use)
    inner = jumbf(label, content, coding.encode())
    return box(b"jumb", box(b"jumd", bytes(16) + b"\x03c2pa\0") + jumbf(b"c2pa.actions", b'{"use": "notAllowed"}') + inner)


def in_jpeg(store, step=60):
    """APP11 segments of at most `step` bytes of payload, each repeating the box header, as the standard wants it."""
    data, parts = encoded(Image.new("RGB", (32, 32), "red"), "JPEG"), [store[8:][n : n + step] for n in range(0, len(store) - 8, step)]
    segments = b"".join(b"\xff\xeb" + struct.pack(">H2sHI", 2 + 8 + 8 + len(part), b"JP", 1, number) + store[:8] + part for number, part in enumerate(parts, 1))
    return data[:2] + segments + data[2:]


def in_png(store):
    data = png()
    return data[:33] + struct.pack(">I", len(store)) + b"caBX" + store + struct.pack(">I", zlib.crc32(b"caBX" + store)) + data[33:]


@pytest.mark.parametrize("wrap", [in_jpeg, in_png])
@pytest.mark.parametrize("coding", ["json", "cbor"])
def test_a_training_assertion_that_does_not_allow_denies_and_one_that_allows_does_not(wrap, coding):
    for use, label, entry, denied in (
        ("notAllowed", b"c2pa.training-mining", "c2pa.ai_training", True), ("constrained", b"c2pa.training-mining", "c2pa.data_mining", True),
        ("allowed", b"c2pa.training-mining", "c2pa.ai_training", False), ("notAllowed", b"cawg.training-mining", "cawg.ai_generative_training", True),
        ("notAllowed", b"c2pa.training-mining", "c2pa.ai_inference", False), ("notAllowed", b"c2pa.something-else", "c2pa.ai_training", False),
    ):  # fmt: skip
        data = wrap(manifest(use, label, coding, entry))
        Image.open(io.BytesIO(data)).load()
        decision = c2pa_decision(io.BytesIO(data))
        assert (decision.allowed, decision.rule) == ((False, "c2pa") if denied else (True, ""))
        assert not denied or (entry in decision.evidence and use in decision.evidence)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_damaged_manifest_never_raises(at, noise):
    data = bytearray(in_jpeg(manifest("allowed")))
    data[2 + at : 2 + at + len(noise)] = noise
    c2pa_decision(io.BytesIO(bytes(data)))


# ---------------------------------------------------------------- the profile


ROUTES = {
    "/robots.txt": body(b"User-agent: *\nDisallow: /robots", "text/plain"), "/ai.txt": body(b"User-Agent: *\nDisallow: *.jpg", "text/plain"),
    "/.well-known/tdmrep.json": body(b'[{"location": "/tdm/", "tdm-reservation": 1}]', "application/json"), "/robots": body(png()), "/a.jpg": body(png()),
    "/tdm/p": body(png()), "/tag": body(png(), X_Robots_Tag="noai"), "/header": body(png(), TDM_Reservation="1"), "/c2pa": body(in_png(manifest("notAllowed"))),
}  # fmt: skip
CHANNELS = {
    "/robots": ("robots_txt", "robots_denied", "robots.txt"), "/a.jpg": ("ai_txt", "robots_denied", "ai.txt"), "/tdm/p": ("tdmrep", "robots_denied", "tdm-reservation"),
    "/tag": ("x_robots_tag", "optout_header", "x-robots-tag"), "/header": ("tdm_header", "optout_header", "tdm-reservation"), "/c2pa": ("c2pa", "optout_header", "c2pa"),
}  # fmt: skip


def test_every_channel_denies_by_default_with_its_evidence_and_alone_stops_to_bind(tmp_path):
    with web(ROUTES) as site:

        def fetch(path, **profile):
            fetcher = Fetcher(site.network(optouts=profile), QUICK)
            (tmp_path / "x").unlink(missing_ok=True)
            try:
                return fetcher.fetch(f"http://a.test{path}", (tmp_path / "x").write_bytes)
            finally:
                fetcher.close()

        for path, (channel, status, rule) in CHANNELS.items():
            found = fetch(path)
            assert (found.status, found.rights_rule) == (status, rule)
            assert found.rights_evidence
            assert not (tmp_path / "x").exists()
            assert fetch(path, **{channel: False}).status == "ok"
        assert fetch("/tag", x_robots_tag=False).rights_evidence == "X-Robots-Tag: noai", "what was said is kept where it does not bind"
        assert fetch("/tag", directives=["noml"]).status == "ok"
    assert {name for name, field in OptOuts.model_fields.items() if field.annotation is bool} == {channel for channel, _, _ in CHANNELS.values()} | {
        "page_tags",
        "page_robots",
    }
