"""A student that was distilled without a twin."""

from pathlib import Path

import dagster as dg

from assets.evaluation import evaluations
from pipelines.resources import Launcher


def test_the_evaluation_of_a_twin_that_was_not_asked_for_is_skipped_with_a_sentence_and_a_missing_student_still_fails(tmp_path: Path) -> None:
    (tmp_path / "data" / "distilled").mkdir(parents=True)
    by_name = {asset.key.path[-1]: asset for asset in evaluations}
    launcher = Launcher(root=str(tmp_path))
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize([by_name["twin"]], instance=instance, resources={"launcher": launcher})
        assert done.success
        assert not done.get_asset_materialization_events()
        said = [entry.user_message for entry in instance.all_logs(done.run_id)]
        assert any("distil.twin=false" in line for line in said)
        missing = dg.materialize([by_name["student"]], instance=instance, resources={"launcher": launcher}, raise_on_error=False)
        assert not missing.success
