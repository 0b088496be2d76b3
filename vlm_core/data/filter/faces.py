"""Faces in pictures: where they are, and how they are made unrecognisable.

A box is (left, top, right, bottom) in shares of the picture's width and height, so that it holds at every size.
Sources: methods/data.md 3 (blur), 15. Checked by golden `data/image_resize_blur`.
"""

import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_core.data.fetch.stored import Pictures

Box = tuple[float, float, float, float]

GROWTH = 0.1  # of a box's diagonal, added on each side; and the blur's standard deviation
QUALITY = 95  # of the JPEG that is written again


class FaceDetector(Protocol):
    """Boxes of the faces of a stored picture."""

    version: str

    def faces(self, picture: bytes) -> list[Box]: ...


class HaarFaces:
    """OpenCV's boosted cascades (Viola and Jones 2001): frontal and both profiles. From the package, no network, deterministic.

    They find upright faces that are not small, and take the odd pattern for one; a better detector fits behind `FaceDetector`.
    """

    def __init__(self, min_share: float = 0.08, neighbours: int = 5) -> None:
        import cv2

        self.min_share, self.neighbours = min_share, neighbours
        self.version = f"opencv {cv2.__version__} haar frontalface_alt2+profileface {min_share} {neighbours}"

    def faces(self, picture: bytes) -> list[Box]:
        import cv2

        grey = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
        if grey is None:
            return []
        height, width = grey.shape
        grey = cv2.equalizeHist(grey)
        smallest = max(20, round(self.min_share * min(height, width)))
        found: list[tuple[int, int, int, int]] = []
        for name, mirrored in (("frontalface_alt2", False), ("profileface", False), ("profileface", True)):
            seen = _cascade(name).detectMultiScale(cv2.flip(grey, 1) if mirrored else grey, 1.1, self.neighbours, minSize=(smallest, smallest))
            for x, y, w, h in np.asarray(seen, int).reshape(-1, 4).tolist():
                box = (width - x - w if mirrored else x, y, w, h)
                if not any(_overlap(box, other) > 0.3 for other in found):
                    found.append(box)
        return sorted((round(x / width, 4), round(y / height, 4), round((x + w) / width, 4), round((y + h) / height, 4)) for x, y, w, h in found)


@cache
def _cascade(name: str) -> Any:
    import cv2
    import cv2.data

    return cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over union of two (x, y, width, height)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def blur_boxes(image_HWC: NDArray[np.uint8], boxes: Sequence[Box]) -> NDArray[np.uint8]:
    """The picture with its boxes blurred: each grown by a tenth of its diagonal, one Gaussian of a tenth of the longest diagonal, soft edges.

    img2dataset's equations; unlike its head, no global random generator is touched.
    """
    import cv2

    height, width = image_HWC.shape[:2]
    mask_HW, longest = np.zeros((height, width), np.float32), 0
    for left, top, right, bottom in boxes:
        x0, x1, y0, y1 = int(left * width), int(right * width), int(top * height), int(bottom * height)
        diagonal = max(x1 - x0, y1 - y0)
        longest, more = max(longest, diagonal), GROWTH * diagonal
        mask_HW[max(int(y0 - more), 0) : int(y1 + more), max(int(x0 - more), 0) : int(x1 + more)] = 1
    if not longest:
        return image_HWC
    sigma = GROWTH * longest
    kernel = max(2 * math.ceil(sigma) + 1, 3)
    soft = cv2.GaussianBlur(mask_HW, (kernel, kernel), sigma)
    smooth = cv2.GaussianBlur(image_HWC, (kernel, kernel), sigma)
    soft = soft if image_HWC.ndim == 2 else soft[..., None]
    return np.rint(image_HWC * (1 - soft) + smooth * soft).astype(np.uint8)


def blurred(jpeg: bytes, boxes: Sequence[Box]) -> bytes:
    """A stored JPEG with its boxes blurred, as JPEG."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    out = io.BytesIO()
    Image.fromarray(blur_boxes(pixels, boxes)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


class BlurredPictures(Pictures):
    """The stored pictures of a download folder, with these faces blurred whenever one is read."""

    def __init__(self, folder: Path, faces: Mapping[str, Sequence[Box]]) -> None:
        super().__init__(folder)
        self._faces = faces

    def read(self, uid: str) -> bytes:
        jpeg = super().read(uid)
        return blurred(jpeg, self._faces[uid]) if uid in self._faces else jpeg
