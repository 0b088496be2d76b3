"""The page that shows a snapshot."""

import dagster as dg

from assets.shards import snapshot
from assets.sources import DATA
from assets.worker import menu, perform
from pipelines.resources import Launcher
from vlm_core.run import VERBS

REPORT = menu("report")


@dg.asset(**DATA, kinds={"html"}, deps=[snapshot])
def report(context: dg.AssetExecutionContext, launcher: Launcher, config: REPORT.form) -> dg.MaterializeResult:
    """One HTML file that shows the snapshot: kept and dropped by reason, scores, languages, domains, duplicates, captions, licences, and how it was made."""
    places = {"pairs": "candidate_pairs"}
    inputs = {name: launcher.data(places.get(name, name)) for name in VERBS["report"].inputs}
    made = perform(context, launcher, REPORT, config, inputs, launcher.data("report"))
    page = launcher.at(launcher.data("report", "index.html")).absolute()
    return made._replace(metadata={**(made.metadata or {}), "page": dg.MetadataValue.path(str(page))})
