"""What the documents say exists, exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.small_world import make_shards
from tests.train.transfer_world import labelled_set
from vlm_core.cli import COMMANDS
from vlm_core.errors import ConfigError
from vlm_core.run import VERBS, load, recipes

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("infra/**/*.md"), ROOT / "CONTRIBUTING.md"])
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_within_the_repository_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXTS[page])
    assert [target for target in targets if "://" not in target and not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_path_in_backticks_is_there(page: str) -> None:
    paths = re.findall(r"`((?:vlm_core|assets|pipelines|infra|docs|tests|benchmarks|examples)/[\w./-]+)`", TEXTS[page])
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_vlm_command_names_a_verb_and_every_recipe_exists(page: str) -> None:
    said = set(re.findall(r"`?vlm ([a-z-]+)", " ".join(re.findall(r"`vlm [^`]+`|^vlm .*$", TEXTS[page], re.M))))
    assert said - {*VERBS, *COMMANDS, "help"} == set()
    for verb, recipe in re.findall(r"vlm (?:show )?([a-z-]+)[^`\n]*--recipe (\w+)", TEXTS[page]):
        assert recipe in recipes(verb)


@pytest.mark.parametrize("page", TEXTS)
def test_every_setting_that_a_command_changes_exists(page: str) -> None:
    for verb, recipe, rest in re.findall(r"`vlm ([a-z-]+) --recipe (\w+)([^`\n]*)`", TEXTS[page]):
        for change in re.findall(r"--set (\S+)", rest):
            try:
                load(verb, recipe, None, (change,))
            except ConfigError as error:
                pytest.fail(f"{page}: {error}")


def test_the_readme_is_short_and_names_both_commands() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) < 200
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in lines}


def test_every_verb_has_its_row_in_the_flow() -> None:
    assert [verb for verb in VERBS if f"`vlm {verb}`" not in TEXTS["docs/flow.md"]] == []


def test_every_verb_is_in_the_readme_or_on_a_page_that_it_links() -> None:
    linked = [page for page in re.findall(r"\]\(([\w/]+\.md)", TEXTS["README.md"]) if page in TEXTS]
    text = "\n".join(TEXTS[page] for page in ("README.md", *linked))
    assert [name for name in (*VERBS, *COMMANDS) if not re.search(rf"vlm {name}\b", text)] == []


def test_what_git_holds_is_at_most_25_mb() -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    sizes = {name: (ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file()}
    assert sum(sizes.values()) <= 25_000_000, sorted(sizes, key=sizes.__getitem__)[-5:]


@pytest.mark.parametrize("family", sorted(path.name for path in (ROOT / "tests/golden").iterdir() if list(path.glob("*.npz"))))
def test_golden_arrays_lie_beside_a_page_that_says_where_each_comes_from(family: str) -> None:
    folder = ROOT / "tests/golden" / family
    said = (folder / "README.md").read_text()
    assert [file.name for file in folder.glob("*.npz") if file.stem not in said] == []


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for text in TEXTS.values() for word in re.findall(r"`make ([a-z]+)`", text)}
    assert named - targets == set()


def run_example(name: str, *words: object, home: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "VLM_HOME": str(home), "OMP_NUM_THREADS": "1", "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.flow
def test_the_examples_run_one_after_the_other(tmp_path: Path) -> None:
    shards, _ = make_shards(tmp_path / "shards")
    tiny = ("model.image.layers=1", "model.image.patch_size=16", "model.text.layers=1", "loader.batch_size=8", "fit.epochs=2")
    said = run_example("pretrain_tiny", shards, tmp_path / "model", *tiny, home=tmp_path / "home")
    assert re.search(r"8 steps at \d+ pairs/s", said)  # 39 samples, 4 whole batches of 8, 2 epochs
    picture = next(iter((ROOT / "docs").rglob("*.png")))
    scores = run_example("score_pairs", tmp_path / "model", picture, "--", "a cat", "a diagram", home=tmp_path / "home")
    assert len(re.findall(r"^[+-][01]\.\d{3}  .*  (?:a cat|a diagram)$", scores, re.M)) == 2
    labelled_set(tmp_path / "eval_sets")
    adapted = run_example("adapt_a_checkpoint", tmp_path / "model", tmp_path / "eval_sets", "colours", tmp_path / "adapted", home=tmp_path / "home")
    assert {line.split()[0] for line in adapted.splitlines()} == {"tip_adapter", "linear_probe"}
    asked = run_example("query_lineage", tmp_path / "home" / "catalog", home=tmp_path / "home")
    assert "my_siglip" in asked
