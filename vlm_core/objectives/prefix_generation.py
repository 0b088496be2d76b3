"""From a picture, a task prompt and the first words of the caption the rest is written; only the rest is scored
(PaLI, arXiv 2209.06794: captioning by prompt and completing a split caption; SimVLM, arXiv 2108.10904, prefix language modelling).

What is given goes through the causal text tower and the model's decoder, where PaLI has an encoder of its own and SimVLM lets the words of the prefix
see each other both ways.

Checked by hand in `tests/objectives/test_fused.py`.
"""

# B pairs, L tokens

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, present
from vlm_core.objectives.heads import word_loss


def scored(ids_BL: Tensor, given_B: Tensor) -> Tensor:
    """(B, L - 1), true where the next token is one of the rest: not given and not padding."""
    places_L = torch.arange(1, ids_BL.shape[1], device=ids_BL.device)
    return (places_L >= given_B[:, None]) & (ids_BL[:, 1:] != 0)


class PrefixGeneration(Objective):
    def __init__(self, config: menu.PrefixGeneration) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        towers, ids_BL = present(out.towers), batch["prefix_ids"]
        decoder, text = present(towers.decoder), towers.text

        def write(patches_BPE: Tensor, ids_BL: Tensor) -> Tensor:
            states_BLE = text.states(text.embed(ids_BL), ids_BL)  # type: ignore[operator]
            return decoder(decoder.see(patches_BPE), states_BLE[:, :-1])

        rows, to_say_BL = (present(out.patches_BPE), ids_BL), scored(ids_BL, batch["given"])
        return {"prefix_generation": word_loss(write, rows, ids_BL[:, 1:], to_say_BL, decoder.say, chunk_size=self.config.chunk_size)}


def build(config: menu.PrefixGeneration, towers: TwoTower) -> Objective:
    return PrefixGeneration(config)
