"""Visual tokens that the platform trains itself: the nearest of a fixed number of patch clusters, found by k-means over training pictures.

It stands where BEiT (arXiv 2106.08254) and FLAVA (arXiv 2112.04482) have DALL-E's discrete VAE: a token says how a patch looks, not what it means.
As there a patch is looked at in 8 x 8 pixels (a picture of 224 pixels at 112), whatever its side.
"""

# B images, R rows of the patch grid, P patches, S values of a patch, V clusters, N patches that are clustered

import faiss
import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.errors import Incompatible
from vlm_core.models import config as menu

SIDE = 8  # pixels of a patch that are looked at, each way
ROUNDS = 20  # of k-means
START = 8  # patches per cluster among which k-means++ chooses where to begin
ROWS = 4096  # patches whose distances to all clusters exist at a time


class PatchClusters(nn.Module):
    """A VisualTokenizer (visual_tokenizer.py). The clusters are buffers, so step checkpoints and the model folder hold them."""

    def __init__(self, config: menu.PatchClusters, rows: int, patch_px: int) -> None:
        super().__init__()
        self.vocab_size, self.rows, self.side = config.vocabulary, rows, min(patch_px, SIDE)
        self.patches = config.patches
        self.centres_VS: Tensor
        self.register_buffer("centres_VS", torch.zeros(self.vocab_size, 3 * self.side**2))

    @property
    def ready(self) -> bool:
        """Whether it was fitted."""
        return bool(self.centres_VS.any())

    def patches_of(self, images_B3HW: Tensor) -> Tensor:
        """What is compared: patches (B, P, S), float32, row by row."""
        edge, batch = self.rows * self.side, len(images_B3HW)
        small_B3EE = F.interpolate(images_B3HW.float(), [edge, edge], mode="area")
        grid = small_B3EE.reshape(batch, 3, self.rows, self.side, self.rows, self.side)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, self.rows**2, -1)

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        with torch.autocast(images_B3HW.device.type, enabled=False):
            patches_NS, centres_VS = self.patches_of(images_B3HW).flatten(0, 1), self.centres_VS.float()
            half_V = centres_VS.square().sum(1) / 2
            parts = [(half_V - part_KS @ centres_VS.T).argmin(1) for part_KS in patches_NS.split(ROWS)]
        return torch.cat(parts).view(len(images_B3HW), -1)

    def rebuild(self, ids_BP: Tensor) -> Tensor:
        edge, batch = self.rows * self.side, len(ids_BP)
        grid = self.centres_VS[ids_BP].reshape(batch, self.rows, self.rows, 3, self.side, self.side)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, edge, edge)

    def fit(self, images_B3HW: Tensor, seed: int) -> None:
        """K-means over the distinct patches of normalised pictures (a clip-art corpus is mostly one white patch)."""
        patches_NS = np.unique(self.patches_of(images_B3HW).flatten(0, 1)[: self.patches].numpy(), axis=0)
        if len(patches_NS) < self.vocab_size:
            raise Incompatible(
                f"Found {len(patches_NS)} distinct patches in the training pictures for model.visual_tokens.vocabulary {self.vocab_size}, "
                "expected as many at least; lower vocabulary or raise model.visual_tokens.patches."
            )
        some_NS = np.random.default_rng(seed).permutation(patches_NS)[: START * self.vocab_size]
        first_VS, _ = kmeans_plusplus(some_NS, self.vocab_size, random_state=seed % 2**32, n_local_trials=1)
        settings = {"niter": ROUNDS, "seed": seed % 2**31, "min_points_per_centroid": 1, "max_points_per_centroid": len(patches_NS)}
        found = faiss.Kmeans(patches_NS.shape[1], self.vocab_size, **settings)
        found.train(patches_NS, init_centroids=first_VS)
        self.centres_VS.copy_(torch.from_numpy(found.centroids))


def build(config: menu.PatchClusters, *, rows: int, patch_px: int, fresh: bool = True) -> nn.Module:
    return PatchClusters(config, rows, patch_px)
