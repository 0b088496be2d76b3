"""T-MARS (arXiv 2307.03132): how well caption and picture fit once the lettering is painted over."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_core.data.config import TextMask
from vlm_core.data.fetch.stored import Pictures
from vlm_core.data.filter.lettering import Network, Strokes, TextDetector, mask_of, painted_over, text_overlap
from vlm_core.stage import Stage

if TYPE_CHECKING:
    from vlm_core.models.embed import Embedded

BLOCK = 512  # pictures whose vectors are kept together, so that a killed run goes on there


def masked_scores(config: TextMask, found: "Embedded", store: Pictures, stage: Stage, detector: TextDetector | None = None) -> dict[str, NDArray[np.float32]]:
    """masked_score, text_area and, where the detector reads, text_overlap per sample. A picture without lettering keeps its score and is not encoded again; equal pictures are looked at once."""
    detector = detector or (Network if config.detector == "network" else Strokes)(config.letters)
    shas = found.samples["sha256"].to_numpy(zero_copy_only=False).astype(str)
    _, first, picture_of = np.unique(shas, return_index=True, return_inverse=True)
    uids = found.samples["uid"].to_pylist()
    area_P, image_PD, read_P = np.zeros(len(first), np.float32), found.image_ND[first].copy(), [""] * len(first)
    for begin in range(0, len(first), BLOCK):
        file, rows = stage.state / f"masked-{begin:09d}.npz", first[begin : begin + BLOCK]
        if not file.exists():
            covered = [cover(np.asarray(store.image(uids[row])), detector) for row in rows]
            changed = np.flatnonzero([area > 0 for _, area, _ in covered])
            vectors = found.other_pictures([covered[place][0] for place in changed], rows[changed]) if len(changed) else image_PD[:0]
            with file.with_suffix(".tmp").open("wb") as stream:
                np.savez(
                    stream, area=np.array([area for _, area, _ in covered], np.float32), changed=changed, vectors=vectors, read=[read for *_, read in covered]
                )
            file.with_suffix(".tmp").rename(file)
        with np.load(file) as block:
            area_P[begin : begin + len(rows)] = block["area"]
            image_PD[begin + block["changed"]] = block["vectors"]
            read_P[begin : begin + len(rows)] = block["read"].tolist()
        stage.progress("pictures: lettering painted over", min(begin + BLOCK, len(first)), len(first))
    score = np.einsum("nd,nd->n", image_PD[picture_of], found.text_ND)
    area = area_P[picture_of]
    made = {"masked_score": np.where(area > 0, score, found.scores).astype(np.float32), "text_area": area}
    if detector.reads:
        captions = found.samples["caption"].to_pylist()
        made["text_overlap"] = np.array([text_overlap(text, read_P[place]) for text, place in zip(captions, picture_of, strict=True)], np.float32)
    return made


def cover(image_HW3: NDArray[np.uint8], detector: TextDetector) -> tuple[Image.Image, float, str]:
    """(the picture without its lettering, the share of it that was lettering, what was read)."""
    boxes = detector.boxes(image_HW3)
    return Image.fromarray(painted_over(image_HW3, boxes)), float(mask_of(boxes, *image_HW3.shape[:2]).mean()), " ".join(area.text for area in boxes)
