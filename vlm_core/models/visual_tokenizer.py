"""Visual tokens, the targets of masked image modelling: one id per patch of the image tower's own grid.

towers.visual_tokens.vocab_size                    of model.visual_tokens; the towers own it, so the model folder and checkpoints hold it
towers.visual_tokens.encode(images_B3HW) -> (B, P) long, row by row; images are normalised as the tower sees them
"""

# B images, P patches

from typing import Protocol

from torch import Tensor


class VisualTokenizer(Protocol):
    """What objectives use. `encode` gives ids 0 .. vocab_size - 1 without gradient, from normalised pixels."""

    vocab_size: int

    def encode(self, images_B3HW: Tensor) -> Tensor: ...
