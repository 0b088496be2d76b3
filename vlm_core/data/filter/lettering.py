"""Lettering in pictures: where it is, and the picture without it (T-MARS, arXiv 2307.03132).

`TextDetector` is the seam. `Network` is PP-OCRv4 with weights from a package. `Strokes` needs no weights: OpenCV alone finds lines of
small shapes with strokes of one width; it is many times faster, and overlooks single letters, handwriting, lettering larger than a third of the picture and
text on busy ground. Source: methods/data.md 9.
"""

import re
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Grey = NDArray[Any]  # (H, W), as OpenCV gives it
_WORD = re.compile(r"\w+")
INK = 24  # grey levels by which letters of one line may differ


class Area(NamedTuple):
    """Pixels from (left, top) up to but without (right, bottom), and what is read there, if the detector reads."""

    left: int
    top: int
    right: int
    bottom: int
    text: str = ""


class TextDetector(Protocol):
    version: str
    reads: bool  # whether areas say what is written there

    def boxes(self, image_HW3: Pixels) -> list[Area]: ...


class Network:
    """PP-OCRv4 (rapidocr-onnxruntime, Apache-2.0): lines of any size and slant, in Latin or Chinese letters, that its reader can read as at least `letters` letters.

    One thread, so that equal pictures give equal boxes.
    """

    version = "PP-OCRv4, rapidocr-onnxruntime 1.4.4"
    reads = True

    def __init__(self, letters: int = 4) -> None:
        from rapidocr_onnxruntime import RapidOCR

        self.letters = letters
        self._read = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1, text_score=0.6)

    def boxes(self, image_HW3: Pixels) -> list[Area]:
        """Upright boxes around the lines that were read, from the top."""
        height, width = image_HW3.shape[:2]
        lines, _ = self._read(np.ascontiguousarray(image_HW3[..., ::-1]))  # it wants BGR
        found = [(np.array(corners), text) for corners, text, _ in lines or [] if sum(letter.isalnum() for letter in text) >= self.letters]
        low = [np.maximum(np.floor(corners.min(0)), 0).astype(int).tolist() for corners, _ in found]
        high = [np.minimum(np.ceil(corners.max(0)) + 1, (width, height)).astype(int).tolist() for corners, _ in found]
        areas = {Area(left, top, right, bottom, text) for (left, top), (right, bottom), (_, text) in zip(low, high, found, strict=True)}
        return sorted(areas, key=lambda area: (area.top, area.left))


class Shape(NamedTuple):
    """A connected component that may be a letter: its box, the mean width of its strokes, its mean brightness."""

    area: Area
    stroke: float
    ink: float

    @property
    def height(self) -> int:
        return self.area.bottom - self.area.top

    @property
    def width(self) -> int:
        return self.area.right - self.area.left


class Strokes:
    """Letter-like components (stroke width nearly constant) that stand in lines of at least `letters`."""

    version = "opencv strokes 1"
    reads = False

    def __init__(self, letters: int = 4) -> None:
        self.letters = letters

    def boxes(self, image_HW3: Pixels) -> list[Area]:
        """Boxes of lines of text, from the top. Both dark on light and light on dark are looked at."""
        import cv2

        grey = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
        scale = max(1, round(256 / min(grey.shape)))  # letters of a few pixels have no stroke to measure
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) if scale > 1 else grey
        window = max(15, min(grey.shape) // 8) | 1
        found: list[Area] = []
        for side in (grey, cv2.bitwise_not(grey)):
            ink = cv2.adaptiveThreshold(side, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY_INV, window, 18)
            found += lines_of(letter_shapes(ink, side, 6 * scale), self.letters)
        height, width = image_HW3.shape[:2]
        small = [Area(a.left // scale, a.top // scale, min(-(-a.right // scale), width), min(-(-a.bottom // scale), height)) for a in found]
        return sorted(set(small), key=lambda area: (area.top, area.left))


def letter_shapes(ink_HW: Grey, grey_HW: Grey, lowest: int) -> list[Shape]:
    """Components of the size and solidity of a letter whose strokes are of nearly one width, at least `lowest` pixels high."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(ink_HW, connectivity=8)
    depth = cv2.distanceTransform(ink_HW, cv2.DIST_L2, 3)
    tallest, shapes = ink_HW.shape[0] / 3, []
    for number in range(1, count):
        left, top, width, height, size = stats[number].tolist()
        if not (lowest <= height <= tallest and 1 <= width <= 4 * height and 0.12 <= size / (width * height) <= 0.95):
            continue
        part = slice(top, top + height), slice(left, left + width)
        own = labels[part] == number
        inside = np.where(own, depth[part], 0)
        ridge = inside[(inside == cv2.dilate(inside, np.ones((3, 3)))) & (inside > 0)]
        if ridge.std() <= 0.5 * ridge.mean() and 2 * ridge.mean() <= 0.5 * height:
            core = own & (inside >= 0.7 * ridge.mean())
            shapes.append(Shape(Area(left, top, left + width, top + height), 2 * float(ridge.mean()), float(grey_HW[part][core].mean())))
    return shapes


def lines_of(shapes: list[Shape], letters: int) -> list[Area]:
    """Runs of shapes beside each other with like heights and strokes, at least `letters` long, as one box each."""
    order = sorted(shapes, key=lambda shape: (shape.area.left, shape.area.top))
    runs: list[list[Shape]] = []
    for shape in order:
        run = next((run for run in runs if _continues(run[-1], shape)), None)
        if run is None:
            runs.append([shape])
        else:
            run.append(shape)
    return [_around(run) for run in runs if len(run) >= letters and _is_line(run)]


def _continues(last: Shape, shape: Shape) -> bool:
    """The next letter of a line: close by, on one line, of like size and stroke."""
    tall = max(last.height, shape.height)
    gap = shape.area.left - last.area.right
    shared = min(last.area.bottom, shape.area.bottom) - max(last.area.top, shape.area.top)
    stroke = max(last.stroke, shape.stroke) / min(last.stroke, shape.stroke)
    same_ink = abs(last.ink - shape.ink) <= INK
    return (
        same_ink
        and -0.3 * tall <= gap <= 1.2 * tall
        and shared >= 0.4 * min(last.height, shape.height)
        and tall <= 2.2 * min(last.height, shape.height)
        and stroke <= 1.8
    )


def _is_line(run: list[Shape]) -> bool:
    """One ink, one stroke, and most letters on one base line or under one top line."""
    tall = float(np.median([shape.height for shape in run]))
    ink, strokes = (np.array([getattr(shape, name) for shape in run]) for name in ("ink", "stroke"))
    edges = np.array([[shape.area.top, shape.area.bottom] for shape in run])
    aligned = (np.abs(edges - np.median(edges, axis=0)) <= max(0.12 * tall, 1)).mean(0).max()
    return bool(ink.std() <= INK / 2 and strokes.std() <= 0.3 * strokes.mean() and aligned >= 0.6)


def _around(run: list[Shape]) -> Area:
    sides = np.array([shape.area[:4] for shape in run])
    margin = max(2, round(0.2 * float(np.median([shape.height for shape in run]))))
    left, top = np.maximum(sides[:, :2].min(0) - margin, 0).tolist()
    right, bottom = (sides[:, 2:].max(0) + margin).tolist()
    return Area(left, top, right, bottom)


def painted_over(image_HW3: Pixels, boxes: list[Area], ring: int = 3) -> Pixels:
    """The picture with each box filled with the mean colour of the ring around it; other pixels stay as they are."""
    height, width = image_HW3.shape[:2]
    text_HW = mask_of(boxes, height, width)
    out = image_HW3.copy()
    for left, top, right, bottom, _ in boxes:
        rows, columns = slice(max(top - ring, 0), min(bottom + ring, height)), slice(max(left - ring, 0), min(right + ring, width))
        around: NDArray[Any] = image_HW3[rows, columns][~text_HW[rows, columns]]
        out[top:bottom, left:right] = np.rint((around if len(around) else image_HW3.reshape(-1, 3)).mean(0))
    return out


def mask_of(boxes: list[Area], height: int, width: int) -> NDArray[np.bool_]:
    """Which pixels lie in a box; its mean is the share of the picture that is text."""
    mask_HW = np.zeros((height, width), bool)
    for left, top, right, bottom, _ in boxes:
        mask_HW[top:bottom, left:right] = True
    return mask_HW


def text_overlap(caption: str, read: str) -> float:
    """Share of the caption's different words of three letters and more that are also read in the picture, whatever their case; 0 where there is none.

    Spaces do not count, since readers drop them ("SALETODAY"); so a word may also be found inside a longer one.
    """
    words = {word for word in _WORD.findall(caption.casefold()) if len(word) >= 3}
    seen = "".join(_WORD.findall(read.casefold()))
    return sum(word in seen for word in words) / len(words) if words else 0.0
