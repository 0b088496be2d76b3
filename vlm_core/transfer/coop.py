"""CoOp: context words learnt through the frozen text tower (Zhou et al., arXiv 2109.01134; KaiyangZhou/CoOp trainers/coop.py).

The image side is cached features, one of the stored views per step, where the official code augments anew in every epoch.
Prompt assembly and its gradient are checked by golden `transfer/coop_prompt_assembly`.
"""
# B batch, C classes, D joint width, M context tokens, E text width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.errors import Incompatible
from vlm_core.models.prompts import PromptSlots, assemble_prompts, word_context
from vlm_core.transfer.base import Needs, Support, TextTower, TransferMethod
from vlm_core.transfer.config import Coop


class CoopMethod(TransferMethod):
    needs = Needs.TEXT_TOWER

    def __init__(self, config: Coop, context: Tensor, slots: PromptSlots, tower: TextTower, scale: float) -> None:
        super().__init__()
        self.training_settings = config.training
        self.config, self.slots, self.scale = config, slots, scale
        self.context = nn.Parameter(context)
        self._tower = [tower]  # in a list: a frozen part of the model, neither saved nor trained with the method

    def text(self) -> Tensor:
        """(C, D) unit text classifier of the present context."""
        slots = self.slots
        prompts_CLE = assemble_prompts(slots.prefix_C1E, self.context, slots.suffix_CXE, slots.name_lens, self.config.position)
        return F.normalize(self._tower[0].from_embeddings(prompts_CLE, slots.ids_CL), dim=-1)

    def logits(self, image_BD: Tensor) -> Tensor:
        return self.scale * F.normalize(image_BD, dim=-1) @ self.text().T


def build(config: Coop, support: Support) -> CoopMethod:
    if support.tower is None or support.tokenize is None:
        raise Incompatible("Found no text tower for the method 'coop', which learns words through it; give the model with --in model=PATH.")
    context_ME = word_context(config.words, support.tokenize, support.tower.embed) if config.words else None
    tokens = config.tokens if context_ME is None else len(context_ME)
    slots = PromptSlots(support.classnames, tokens, support.tokenize, support.tower.embed)
    if context_ME is None:
        shape = [tokens, slots.prefix_C1E.shape[-1]]
        shape = [len(support.classnames), *shape] if config.class_specific else shape
        context = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(support.seed))
    else:
        context = context_ME.repeat(len(support.classnames), 1, 1) if config.class_specific else context_ME
    return CoopMethod(config, context, slots, support.tower, support.scale)
