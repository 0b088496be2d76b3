"""Draws docs/images/flow.png: `python docs/images/flow.py`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from vlm_core import charts

DATA, MODEL, REPORT, OUTSIDE = "#d7e8f5", "#dff0d8", "#fbe7c6", "#eeeeee"
BOXES = {  # name: (column, row, what happens there, colour)
    "web": (0, 2, "site · WARC · table", OUTSIDE), "pages": (1, 2, "Scrapy, robots.txt", DATA), "candidate_pairs": (2, 2, "alt, figcaption, uid", DATA),
    "images": (3, 2, "img2dataset, own client", DATA), "embeddings": (4, 2, "clip-retrieval, index", DATA), "filtered": (5, 2, "a reason for each", DATA),
    "captions": (5, 1, "LaCLIP, gates", DATA), "shards": (4, 1, "reproducible tars", DATA), "snapshot": (3, 1, "DVC hash", DATA), "eval_sets": (4, 0, "nothing seen before", DATA),
    "pretrained": (2, 1, "Lightning, CLIP, LiT", MODEL), "distilled": (1, 1, "student and twin", MODEL), "features": (3, 0, "computed once", MODEL),
    "transferred": (2, 0, "method × test set", MODEL), "evaluation": (1, 0, "cards, intervals", REPORT), "registry": (0, 0, "MLflow, paired gate", REPORT),
}  # fmt: skip
ARROWS = [
    ("web", "pages"), ("pages", "candidate_pairs"), ("candidate_pairs", "images"), ("images", "embeddings"), ("embeddings", "filtered"), ("filtered", "captions"),
    ("captions", "shards"), ("shards", "snapshot"), ("snapshot", "pretrained"), ("pretrained", "distilled"), ("shards", "eval_sets"), ("eval_sets", "features"),
    ("pretrained", "features"), ("features", "transferred"), ("distilled", "evaluation"), ("pretrained", "evaluation"), ("evaluation", "registry"),
]  # fmt: skip
WIDE, HIGH = 1.0, 0.5


def main() -> None:
    figure = Figure(figsize=(12, 4.2), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.65, 6.35), ylim=(-0.45, 2.5))
    axes.axis("off")
    places = {name: (column * 1.14, row) for name, (column, row, _, _) in BOXES.items()}
    for start, end in ARROWS:
        (x0, y0), (x1, y1) = places[start], places[end]
        gap = 62 if y0 == y1 else 27 if x0 == x1 else 40  # points from the middle of a box to its edge
        axes.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": "#666666", "shrinkA": gap, "shrinkB": gap, "linewidth": 1.3})
    for name, (_, _, what, colour) in BOXES.items():
        x, y = places[name]
        axes.add_patch(
            FancyBboxPatch((x - WIDE / 2, y - HIGH / 2), WIDE, HIGH, boxstyle="round,pad=0,rounding_size=0.08", facecolor=colour, edgecolor="#777777")
        )
        axes.text(x, y + 0.07, name, ha="center", va="center", fontsize=10.5, weight="bold")
        axes.text(x, y - 0.11, what, ha="center", va="center", fontsize=8, color="#333333")
    charts.save(figure, Path(__file__).with_suffix(".png"))


main()
