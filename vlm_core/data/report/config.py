"""Settings of the page that shows a dataset. Torch-free."""

from pydantic import Field

from vlm_core.config import Config


class DatasetPage(Config):
    """One HTML file that shows what is in a snapshot and why."""

    title: str = Field("", max_length=200, description="heading of the page; empty: Dataset report")
    sheet: int = Field(24, ge=1, le=200, description="pictures on a contact sheet")
    per_reason: int = Field(6, ge=1, le=100, description="dropped samples shown per reason")
    side_by_side: int = Field(10, ge=1, le=100, description="pairs of duplicates, and samples with several captions, shown")
    rows: int = Field(20, ge=1, le=500, description="rows of a table of languages, domains or licences; the rest is summed up")
    thumbnail_px: int = Field(128, ge=32, le=256, description="longest side of a picture, in pixels")
    max_mb: float = Field(3.0, ge=0.3, le=50, description="size of the page at most, in MB; pictures beyond it are left out, and counted")
