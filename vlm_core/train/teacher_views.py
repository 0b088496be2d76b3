"""The teacher sees what the student sees: the same crop of the same picture, at the teacher's own size (CLIP-KD's official training, arXiv 2307.12732)."""

# B pairs, S side of the teacher's square

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vlm_core.data.shards.augment import Transform, random_crop
from vlm_core.data.shards.loader import crop_dice, decode, side_for
from vlm_core.data.shards.samples import Samples
from vlm_core.models.pretrained import Vlm
from vlm_core.models.towers import unit
from vlm_core.train.body import Batch


class SameView:
    """`see(batch)`: the teacher's unit embeddings (B, D) of the crops in a batch.

    A crop is a function of (seed, epoch, uid), so it is drawn again, in the picture as the student's loader decoded it, and cut from the picture in full.
    """

    def __init__(self, teacher: Vlm, samples: Samples, student: Transform, seed: int) -> None:
        self.teacher, self.samples, self.student, self.seed = teacher, samples, student, seed
        self.min_side = side_for(student.size_px, student.crop_scale_min, student.crop_ratio_max)
        self.teacher.towers.requires_grad_(False)

    @torch.no_grad()
    def see(self, batch: Batch, device: torch.device) -> Tensor:
        self.teacher.towers.to(device)
        squares = [self.square(row, epoch) for row, epoch in zip(batch["rows"].tolist(), batch["epochs"].tolist(), strict=True)]
        return unit(self.teacher.towers.see(self.teacher.pixels.normalise(torch.stack(squares).to(device))).float())

    def square(self, row: int, epoch: int) -> Tensor:
        """uint8 (3, S, S) of the teacher's size."""
        jpeg, student = self.samples.jpeg(row), self.student
        picture, small = decode(jpeg), decode(jpeg, self.min_side)
        height, width = small.shape[1:]
        box = random_crop(height, width, student.crop_scale_min, student.crop_ratio_max, crop_dice(self.seed, epoch, self.samples.uids[row]))
        down, across = picture.shape[1] / height, picture.shape[2] / width
        top, bottom = round(box[0] * down), round((box[0] + box[2]) * down)
        left, right = round(box[1] * across), round((box[1] + box[3]) * across)
        side, pixels = self.teacher.pixels.size_px, self.teacher.pixels
        return interpolate(picture[None, :, top:bottom, left:right], [side, side], mode=pixels.interpolation, antialias=True)[0]
