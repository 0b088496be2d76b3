"""`rewrite.examples_file`: what prompts draw from it, and the sentence for every way to get it wrong."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from vlm_core.data.captions.config import Recaption, Rewrite
from vlm_core.data.captions.examples import OWN, draw_pairs, read_examples
from vlm_core.data.captions.recaption import make_prompt
from vlm_core.errors import ConfigError, MissingInput
from vlm_core.run import files_named

PAIRS = [["brick oven", "An oven made from bricks."], ["tin roof", "A roof of tin."], ["clay pot", "A pot that is made of clay."]]
GROUPS = [["A red kite.", "A kite in the air.", "Someone flies a kite."], ["A pan.", "A pan of iron."], ["One cow.", "A cow alone."]]


def told(folder: Path, content: Any, **changes: Any) -> Rewrite:
    file = folder / "examples.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return Rewrite(**{"styles": ["human"], "examples_file": str(file), **changes})


def test_a_prompt_draws_pairs_as_they_stand_and_two_captions_of_a_group(tmp_path: Path) -> None:
    shown = read_examples(told(tmp_path, {"human": PAIRS, "mscoco": GROUPS}, styles=["human", "mscoco"]))
    assert set(draw_pairs("human", 3, random.Random(0), shown)) == {tuple(pair) for pair in PAIRS}
    for seed in range(40):
        pairs = draw_pairs("mscoco", 3, random.Random(seed), shown)
        for source, target in pairs:
            [group] = [group for group in GROUPS if target in group]
            assert source in [caption.rstrip(".").lower() for caption in group if caption != target]
        assert len({target[:5] for _, target in pairs}) == 3
    assert make_prompt("a dog", "human", 3, 0, shown).text.count(" => ") == 3


def test_without_a_file_the_examples_are_ours(tmp_path: Path) -> None:
    assert read_examples(Rewrite()) is OWN
    part = told(tmp_path, {style: [list(pair) for pair in pairs] for style, pairs in OWN.pairs.items()} | {"mscoco": [list(group) for group in OWN.groups]})
    assert make_prompt("a dog", "mscoco", 3, 7, read_examples(part)) == make_prompt("a dog", "mscoco", 3, 7)
    assert make_prompt("a dog", "bard", 3, 7, read_examples(part)) == make_prompt("a dog", "bard", 3, 7)


def test_the_bytes_of_the_file_count_as_settings(tmp_path: Path) -> None:
    config = Recaption(rewrite=told(tmp_path, {"human": PAIRS}))
    before = files_named(config)
    told(tmp_path, {"human": PAIRS[::-1]})
    assert list(before) == list(files_named(config)) == ["rewrite.examples_file"]
    assert before != files_named(config)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no JSON"),
        ([PAIRS], "Found a JSON list in"),
        ({"humann": PAIRS}, "did you mean 'human'"),
        ({"human": {"a": "b"}}, "Found a JSON dict under the style 'human'"),
        ({"human": PAIRS[:2]}, "Found 2 examples of the style 'human'"),
        ({"bard": PAIRS}, "Found 0 examples of the style 'human'"),
        ({"human": [*PAIRS, ["alone"]]}, 'Found ["alone"] as example 4 of the style'),
        ({"human": [*PAIRS, ["a", 1]]}, "expected a list of a source and a target"),
        ({"human": [*PAIRS, ["a", "b", "c"]]}, "expected a list of a source and a target"),
        ({"human": [*PAIRS, ["a", "b => c"]]}, "without '=>'"),
        ({"human": [*PAIRS, ["a", "b\u2028c"]]}, "expected one line of text"),
        ({"human": [*PAIRS, [" ", "b"]]}, "expected one line of text"),
        ({"human": PAIRS, "mscoco": [["alone"]]}, "expected a list of at least two captions of one picture"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_examples(told(tmp_path, content))
    assert said in str(caught.value)
    assert "examples.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="correct rewrite.examples_file"):
        read_examples(Rewrite(examples_file=str(tmp_path / "none.json")))
