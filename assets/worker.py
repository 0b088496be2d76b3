"""One verb run for one asset, and its report as people see it in the UI: numbers, tables, pictures, links."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg

from pipelines import launchpad
from pipelines.choices import chosen
from pipelines.resources import Launcher
from vlm_core.config import WAIVER, Config
from vlm_core.stage import Report, record_of

PICTURE_WIDTH = 1000
ROWS = 40


class Menu(NamedTuple):
    """What the Launchpad shows for a verb: the settings that params.yaml resolves to."""

    verb: str
    recipe: str
    settings: Config
    form: type[dg.Config]

    def read(self, filled: dg.Config) -> Config:
        return launchpad.read(type(self.settings), filled)


def menu(verb: str, recipe: str | None = None, *changes: str) -> Menu:
    name, settings = chosen(verb, recipe)
    settings = settings.but(*changes)
    return Menu(verb, name, settings, launchpad.form(settings))


def perform(
    context: dg.AssetExecutionContext, launcher: Launcher, what: Menu, filled: dg.Config, inputs: Mapping[str, Path], out: Path, *, force: bool = False
) -> dg.MaterializeResult:
    """Run the verb with the filled form and say what came out of it."""
    report = launcher.launch(context, what.verb, what.recipe, what.read(filled), inputs, out, force=force)
    if report.reused:
        context.log.info(f"{out} is unchanged: same settings, inputs and code; reused")
    return dg.MaterializeResult(metadata=metadata(report, launcher), data_version=dg.DataVersion(report.data_version))


def metadata(report: Report, launcher: Launcher) -> dict[str, Any]:
    """A report as Dagster metadata. Numbers become curves over time, dotted counts one table of reasons."""
    plain = {name.replace("/", " "): value for name, value in {**report.counts, **report.metrics}.items() if "." not in name or name in report.metrics}
    reasons = [{"reason": name, "samples": value} for name, value in report.counts.items() if "." in name]
    tables = {**({"by reason": reasons} if reasons else {}), **report.tables}
    pictures = launcher.at(record_of(Path(report.out))) / "pictures"
    return {
        **{name: float(value) if isinstance(value, float) else value for name, value in plain.items()},
        **{title: table(rows) for title, rows in tables.items() if rows},
        **{title: picture(pictures / file) for title, file in report.pictures.items() if (pictures / file).exists()},
        **({"warnings": dg.MetadataValue.md("\n\n".join(report.warnings))} if report.warnings else {}),
        **{title: dg.MetadataValue.url(link) for title, link in report.links.items()},
        **({"read despite takedowns": table(read)} if (read := report.provenance.get(WAIVER)) else {}),
        "settings": dg.MetadataValue.json(report.provenance.get("config", {})),
        "made from": dg.MetadataValue.json({"inputs": report.provenance.get("inputs", {}), "code": report.provenance.get("git", ""), "run": report.run_id}),
        "recipe": report.recipe, "reused": report.reused, "seconds": report.seconds, "peak memory (MB)": report.peak_memory_mb,
        "folder": dg.MetadataValue.path(report.out),
    }  # fmt: skip


def picture(file: Path, width: int = PICTURE_WIDTH) -> dg.MarkdownMetadataValue:
    """A PNG, scaled down, drawn inside the page."""
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB")
        small.thumbnail((width, 4 * width))
        stream = io.BytesIO()
        small.save(stream, "PNG", optimize=True)
    return dg.MetadataValue.md(f"![{file.stem}](data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()})")


def table(rows: list[dict[str, Any]]) -> dg.TableMetadataValue:
    """Rows as a table of the UI."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in columns}) for row in rows[:ROWS]]
    schema = dg.TableSchema([dg.TableColumn(name, _kind([record.data[name] for record in records])) for name in columns])
    return dg.MetadataValue.table(records, schema=schema)


def _kind(values: list[Any]) -> str:
    if all(isinstance(value, int) for value in values):
        return "int"
    return "float" if all(isinstance(value, int | float) for value in values) else "string"


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
