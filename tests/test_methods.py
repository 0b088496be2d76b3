"""The catalogue, and that its page says the same."""

import json
from pathlib import Path

import pytest

from vlm_core.config import kinds
from vlm_core.errors import UnknownKind
from vlm_core.methods import catalogue, checks, main, markdown
from vlm_core.run import recipes
from vlm_core.transfer.config import Method

DOCS = Path(__file__).parent.parent / "docs" / "methods.md"
GOLDEN = Path(__file__).parent / "golden"


def test_the_page_has_exactly_one_row_per_kind_and_the_row_is_true() -> None:
    page = DOCS.read_text()
    assert markdown(catalogue()) in page, "copy the table of 'vlm methods --markdown' into docs/methods.md"


def test_every_kind_says_what_it_does_and_names_arrays_that_exist() -> None:
    for row in catalogue():
        assert row.does.endswith("."), row.kind
        for name in filter(None, row.checked_by.split(", ")):
            file = DOCS.parent.parent / name if name.startswith("tests/") else GOLDEN / f"{name}.npz"
            assert file.exists(), f"{row.kind} names {name}"


def test_every_objective_is_checked_by_something() -> None:
    assert [row.kind for row in catalogue("objectives") if not row.checked_by] == []


def test_the_transfer_menu_is_what_the_union_offers() -> None:
    rows = {row.kind: row for row in catalogue("transfer")}
    assert list(rows) == list(kinds(Method))
    assert (rows["coop"].needs, rows["coop"].paper) == ("gradient through the text tower", "arXiv 2109.01134")
    assert (rows["zero_shot"].setting, rows["tip_adapter_f"].setting) == ("zero-shot", "few-shot")
    assert rows["tip_adapter"].checked_by == "transfer/tip_adapter"


UNRELEASED = ("align", "filip", "pyramidclip", "unicl", "ra_clip", "kelip", "detclip", "coca", "nlip", "pali_style", "basic", "one_tower")


def test_recipes_are_rows_and_say_where_there_was_no_official_code() -> None:
    rows = {row.kind: row for row in catalogue("recipes")}
    assert set(rows) == set(recipes("pretrain"))
    assert (rows["declip"].paper, rows["declip"].setting, rows["declip_tiny"].setting) == ("arXiv 2110.05208", "the paper's size", "two cores")
    assert set(rows["declip"].needs.split(", ")) == {"multi_view", "nearest_neighbour", "simsiam", "masked_language"}
    for name in UNRELEASED:
        assert any(words in rows[name].does for words in ("fficial code", "not released", "not in the released")), name
    assert not any("(;" in row.does or "(," in row.does or "arXiv" in row.does for row in rows.values())


def test_an_unknown_family_is_answered_with_the_menu() -> None:
    with pytest.raises(UnknownKind, match="did you mean 'transfer'"):
        catalogue("transfers")


def test_braces_in_a_docstring_name_several_files() -> None:
    assert checks("golden `transfer/{a,b}` and `evaluation/c`, `transfer/a` again") == ["transfer/a", "transfer/b", "evaluation/c"]
    assert checks("by hand in `tests/x/test_y.py`; golden `data/z`") == ["data/z", "tests/x/test_y.py"]


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transfer"]) == 0
    assert "tip_adapter_f" in capsys.readouterr().out
    assert main(["--json", "objectives"]) == 0
    assert {row["family"] for row in json.loads(capsys.readouterr().out)} == {"objectives"}
