"""Which of our functions gives the arrays of `tests/golden/pretraining/`. Tolerances of its README: rtol 1e-6, atol 1e-8 in float64."""

from collections.abc import Iterator

import numpy as np
import torch
from open_clip.modified_resnet import AttentionPool2d, Bottleneck
from torch import nn

from tests.distributed.ranks import run_ranks
from tests.golden.check import Arrays, Check, Entry, gradient, tensor
from tests.golden.pretraining_objectives import OBJECTIVES, near
from vlm_core.config import build
from vlm_core.data.captions import alip
from vlm_core.distill.base import Embeddings
from vlm_core.distill.relation_kd import relation_kd_loss
from vlm_core.models import config as models
from vlm_core.objectives.contrast import logits as clip_logits
from vlm_core.objectives.gather import exchange, gather
from vlm_core.objectives.image_text_contrastive import clip_loss
from vlm_core.objectives.sigmoid import siglip_loss
from vlm_core.objectives.weighted_captions import weighted_clip_loss


def clip_loss_arrays(arrays: Arrays) -> Iterator[Check]:
    image, text, log_scale = (tensor(arrays[name], grad=True) for name in ("image_features", "text_features", "log_logit_scale"))
    scale, bias = log_scale.exp(), tensor(arrays["logit_bias"])
    yield near("logit_scale", scale, arrays["logit_scale"])
    yield near("logits_per_image", clip_logits(image, text, scale), arrays["logits_per_image"])
    yield near("logits_per_text", clip_logits(text, image, scale), arrays["logits_per_text"])
    yield near("loss_with_bias", clip_loss(image, text, scale, bias), arrays["loss_with_bias"])
    for chunk in (0, 3):
        loss = clip_loss(image, text, scale, chunk_size=chunk)
        yield near(f"loss, chunk {chunk}", loss, arrays["loss"])
        yield near(f"grad_image_features, chunk {chunk}", gradient(loss, image), arrays["grad_image_features"])
        yield near(f"grad_text_features, chunk {chunk}", gradient(loss, text), arrays["grad_text_features"])
        yield near(f"grad_log_logit_scale, chunk {chunk}", gradient(loss, log_scale), arrays["grad_log_logit_scale"])


def alip_arrays(arrays: Arrays) -> Iterator[Check]:
    """A step with warm means of which some samples are not doubted; the whole loss with its gradients."""
    image, raw, caption = (tensor(arrays[f"{name}_features"], grad=True) for name in ("image", "raw_text", "caption"))
    names = ("raw_caption", "image_raw", "image_caption")
    before = alip.Means(*(tensor(arrays[f"momentum_sim_{name}_before"]) for name in names))
    weights, after = alip.alip_weights(image, raw, caption, before, float(arrays["gamma"]), float(arrays["ema_decay"]))
    for name, mean in zip(names, after, strict=True):
        yield near(f"momentum_sim_{name}_after", mean, arrays[f"momentum_sim_{name}_after"])
    for name, value in {"weight_sample": weights.sample_B, "weight_raw": weights.raw_B, "weight_caption": weights.caption_B}.items():
        yield near(name, value, arrays[name])
    for chunk in (0, 4):
        scale = tensor(arrays["logit_scale"])
        of_raw = weighted_clip_loss(image, raw, scale, weights.raw_B, weights.sample_B, chunk_size=chunk)
        of_caption = weighted_clip_loss(image, caption, scale, weights.caption_B, weights.sample_B, chunk_size=chunk)
        for name, value in {"loss_raw": of_raw, "loss_caption": of_caption, "loss": of_raw + of_caption}.items():
            yield near(f"{name}, chunk {chunk}", value, arrays[name])
        for name, leaf in {"grad_image": image, "grad_raw": raw, "grad_caption": caption}.items():
            yield near(f"{name}, chunk {chunk}", gradient(of_raw + of_caption, leaf), arrays[name])


def distill_clip_loss_arrays(arrays: Arrays) -> Iterator[Check]:
    """open_clip's is the cross-entropy with the teacher's softmax: ours, a divergence, and the teacher's entropy, which has no gradient."""
    image, text = (tensor(arrays[f"{name}_features"], grad=True) for name in ("image", "text"))
    student = Embeddings(image, text, tensor(arrays["logit_scale"]))
    teacher = Embeddings(*(tensor(arrays[f"teacher_{name}"]) for name in ("image_features", "text_features", "logit_scale")))
    wanted = clip_logits(teacher.image_BD, teacher.text_BD, teacher.scale)
    entropy = sum(torch.distributions.Categorical(logits=rows).entropy().mean() for rows in (wanted, wanted.T)) / 2
    contrast, distill = clip_loss(image, text, student.scale), relation_kd_loss(student, teacher)
    yield near("contrastive_loss", contrast, arrays["contrastive_loss"])
    yield near("distill_loss", distill + entropy, arrays["distill_loss"])
    for name, leaf in {"grad_image_features": image, "grad_text_features": text}.items():
        yield near(name, gradient(contrast + distill, leaf), arrays[name])


def siglip_loss_arrays(arrays: Arrays) -> Iterator[Check]:
    names = ("image_features", "text_features", "log_logit_scale", "logit_bias")
    leaves = [tensor(arrays[name], grad=True) for name in names]
    image, text, log_scale, bias = leaves
    yield near("loss_negative_only", siglip_loss(image, text, log_scale.exp(), bias, negative_only=True), arrays["loss_negative_only"])
    chunk = int(arrays["chunk_size"])
    for name, size in (("loss", 0), ("loss_chunked", chunk)):
        loss = siglip_loss(image, text, log_scale.exp(), bias, chunk_size=size)
        yield near(name, loss, arrays[name])
        for leaf_name, leaf in zip(names, leaves, strict=True):
            yield near(f"grad_{leaf_name}, chunk {size}", gradient(loss, leaf), arrays[f"grad_{leaf_name}"])


CLIP_MODES = {f"clip_local{local:d}_gwg{grad:d}": (local, grad) for local in (False, True) for grad in (False, True)}


def distributed_losses(arrays: Arrays) -> Iterator[Check]:
    """Every mode in real processes. Also the one that the settings refuse: it must be refused for the reason that the arrays show."""
    image, text, log_scale, bias = (arrays[name] for name in ("image_features", "text_features", "log_logit_scale", "logit_bias"))
    flat = image.reshape(-1, image.shape[-1]), text.reshape(-1, text.shape[-1])
    leaves = [tensor(array, grad=True) for array in (*flat, log_scale)]
    full = {
        "clip_full": clip_loss(leaves[0], leaves[1], leaves[2].exp()),
        "siglip_full": siglip_loss(leaves[0], leaves[1], leaves[2].exp(), tensor(bias)),
    }
    for name, loss in full.items():
        yield near(f"{name}_loss", loss, arrays[f"{name}_loss"])
        for side, leaf in zip(("image", "text"), leaves, strict=False):
            yield near(f"{name}_grad_{side}", gradient(loss, leaf).reshape(image.shape), arrays[f"{name}_grad_{side}"])
    yield near("clip_full_grad_log_scale", gradient(full["clip_full"], leaves[2]), arrays["clip_full_grad_log_scale"])
    ranks = run_ranks(_losses_of_rank, len(image), image, text, log_scale, bias)
    for name in ranks[0]:
        yield near(name, np.stack([rank[name] for rank in ranks]), arrays[name])


def _losses_of_rank(rank: int, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    """What one rank computes in every mode, before gradients are averaged."""
    image, text, log_scale = (tensor(array, grad=True) for array in (arrays[0][rank], arrays[1][rank], arrays[2]))
    bias, out = tensor(arrays[3]), {}
    losses = {}
    for name, (local, grad) in CLIP_MODES.items():
        rows_image, rows_text, all_image, all_text, offset = exchange(image, text, local, grad)
        losses[name] = clip_loss(rows_image, rows_text, log_scale.exp(), image_ND=all_image, text_ND=all_text, offset=offset)
    siglip = siglip_loss(image, gather(text), log_scale.exp(), bias, offset=rank * len(image), chunk_size=3)
    losses |= {f"siglip_{how}": siglip for how in ("bidir", "shift", "reduce", "gather")}  # one way of ours for four official ones
    for name, loss in losses.items():
        parts = zip(("image", "text", "log_scale"), (image, text, log_scale), strict=True)
        out[f"{name}_loss"] = loss.detach().numpy()
        out |= {f"{name}_grad_{part}": gradient(loss, leaf).numpy() for part, leaf in parts}
    return out


def filled(module: nn.Module, arrays: Arrays) -> nn.Module:
    """The module in float64 with the stored official weights, all of them and nothing else."""
    state = {name.removeprefix("w__"): tensor(array) for name, array in arrays.items() if name.startswith("w__")}
    kept = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.double().load_state_dict({**state, **kept})
    return module.eval()


def attention_pool2d(arrays: Arrays) -> Iterator[Check]:
    x = tensor(arrays["x"], grad=True)
    width, side = x.shape[1], x.shape[-1]
    out = filled(AttentionPool2d(side, width, int(arrays["num_heads"]), arrays["output"].shape[-1]), arrays)(x)
    yield near("output", out, arrays["output"])
    yield near("objective", (out**2).sum(), arrays["objective"])
    yield near("grad_x", gradient((out**2).sum(), x), arrays["grad_x"])


def clip_resnet_bottleneck(arrays: Arrays) -> Iterator[Check]:
    x = tensor(arrays["x"], grad=True)
    out = filled(Bottleneck(int(arrays["inplanes"]), int(arrays["planes"]), int(arrays["stride"])), arrays)(x)
    yield near("output", out, arrays["output"])
    yield near("grad_x", gradient((out**2).sum(), x), arrays["grad_x"])


def clip_vit(arrays: Arrays) -> Iterator[Check]:
    x = tensor(arrays["x"], grad=True)
    width = arrays["w__class_embedding"].shape[0]
    settings = models.Vit(
        image_size=x.shape[-1], patch_size=int(arrays["patch_size"]), width=width, layers=int(arrays["layers"]), heads=int(arrays["heads"]),
        mlp_ratio=arrays["w__transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
    )  # fmt: skip
    out = filled(build(settings, width=arrays["output"].shape[-1], activation="quick_gelu"), arrays)(x)
    yield near("output", out, arrays["output"])
    yield near("grad_x", gradient((out**2).sum(), x), arrays["grad_x"])


def clip_text_tower(arrays: Arrays) -> Iterator[Check]:
    ids = tensor(arrays["input_ids"])
    vocabulary, width = arrays["token_embedding"].shape
    settings = models.ClipTransformer(
        context_length=len(arrays["positional_embedding"]), vocab_size=vocabulary, width=width, layers=int(arrays["layers"]), heads=int(arrays["heads"])
    )
    loose = ("token_embedding", "positional_embedding", "text_projection")
    names = {"token_embedding": "token_embedding.weight"}
    weights = {**arrays, **{f"w__{names.get(name, name)}": arrays[name] for name in loose}}
    tower = filled(build(settings, width=arrays["output"].shape[-1], activation="quick_gelu"), weights)
    yield Check("eot_index", ids.argmax(-1), arrays["eot_index"])
    yield near("output", tower(ids), arrays["output"])
    yield near("output from embeddings", tower.from_embeddings(tower.embed(ids), ids), arrays["output"])


TABLE: dict[str, Entry] = {
    "alip": alip_arrays,
    "attention_pool2d": attention_pool2d,
    "clip_loss": clip_loss_arrays,
    "clip_resnet_bottleneck": clip_resnet_bottleneck,
    "clip_text_tower": clip_text_tower,
    "clip_vit": clip_vit,
    "distill_clip_loss": distill_clip_loss_arrays,
    "distributed_losses": distributed_losses,
    "siglip_loss": siglip_loss_arrays,
    **OBJECTIVES,
}
