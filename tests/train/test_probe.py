"""Compiling behind a probe: kept where it is faster and agrees, left alone with one line where the compiler fails, decided once per run."""

import json
from pathlib import Path

import pytest
import torch

from tests.objectives.world import SMALL, batch, built, towers
from vlm_core.objectives import config as menu
from vlm_core.train import probe
from vlm_core.train.blocks import blocks_of
from vlm_core.train.body import Body


def body_with_queue() -> Body:
    settings, model = menu.Objectives.read({"image_text_contrastive": {}, "moco": SMALL["moco"]}), towers(**{"image.layers": 2, "image.patch_dropout": 0.25})
    return Body(model, dict(built(settings, model).items()), {"image_text_contrastive": 1.0, "moco": 1.0}, settings.needs)  # type: ignore[arg-type]


def are_compiled(body: Body) -> set[bool]:
    return {block._compiled_call_impl is not None for block in blocks_of(body.towers)}


@pytest.mark.slow
def test_compiled_blocks_are_kept_only_where_they_agree_and_are_faster(tmp_path: Path) -> None:
    body = body_with_queue()
    said = probe.decide(body, batch, torch.float32, tmp_path)
    answer = json.loads((tmp_path / probe.ANSWER).read_text())
    assert answer["said"] == said
    assert are_compiled(body) == {answer["compiled"]}
    assert said.startswith("compiled: " if answer["compiled"] else "not compiled: ")
    assert "the compiler failed" not in said
    probe.switch(body, on=True)
    found = probe._one(body, batch(), torch.float32)
    probe.switch(body, on=False)
    assert found[:2] == pytest.approx(probe._one(body, batch(), torch.float32)[:2], rel=1e-3)


def test_where_the_compiler_fails_nothing_is_compiled_and_one_line_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    torch._dynamo.reset()  # what an earlier test compiled
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    body, before = body_with_queue(), torch.get_rng_state()
    state = {name: value.clone() for name, value in body.state_dict().items()}
    said = probe.decide(body, batch, torch.float32, tmp_path)
    assert said.startswith("not compiled: the compiler failed (")
    assert "no-such-compiler" in said
    assert "\n" not in said
    assert are_compiled(body) == {False}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in body.state_dict().items())  # queue and slow copy, too
    assert {value.grad for value in body.parameters()} == {None}
    assert probe.decide(body, batch, torch.float32, tmp_path) == f"as before: {said}"


def test_the_answer_of_the_first_run_stands_for_a_continued_one(tmp_path: Path) -> None:
    body = body_with_queue()
    (tmp_path / probe.ANSWER).write_text(json.dumps({"compiled": True, "said": "compiled: 1.20 times the speed without"}))
    assert probe.decide(body, batch, torch.float32, tmp_path) == "as before: compiled: 1.20 times the speed without"
    assert are_compiled(body) == {True}
    probe.switch(body, on=False)
    assert are_compiled(body) == {False}
