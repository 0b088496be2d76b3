"""The part of the pre-training table that is about objectives. Tolerances of its README: rtol 1e-6, atol 1e-8 in float64."""

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden.check import Arrays, Check, Entry, gradient, tensor
from vlm_core.models import region_text, vit_grouping
from vlm_core.models.fusion import itm_logits
from vlm_core.models.momentum import ema_update
from vlm_core.objectives import image_text_matching as itm
from vlm_core.objectives import masked_autoencoder as mae
from vlm_core.objectives import optimal_transport as otter
from vlm_core.objectives import patch_grouping as grouping
from vlm_core.objectives import regions
from vlm_core.objectives.contrast import both_ways, cross_entropy, logits, softened
from vlm_core.objectives.gather import Pairs
from vlm_core.objectives.heads import MaskedHead, masked_prediction_loss, word_loss
from vlm_core.objectives.image_contrastive import image_contrastive_loss
from vlm_core.objectives.image_text_label import own_labels, unicl_loss, unicl_targets
from vlm_core.objectives.masks import block_mask, mask_tokens
from vlm_core.objectives.mixup import mix, mixup_infonce
from vlm_core.objectives.moco import moco_infonce
from vlm_core.objectives.multi_view import multi_view_loss
from vlm_core.objectives.nearest_neighbour import nearest, nn_supervision_loss
from vlm_core.objectives.queue import push
from vlm_core.objectives.queued_contrastive import itc_queue_loss
from vlm_core.objectives.simsiam import simsiam_loss
from vlm_core.objectives.soft_target import soft_infonce
from vlm_core.objectives.token_wise import filip_loss, select_tokens, token_similarity


def near(name: str, got: object, expected: object) -> Check:
    return Check(name, got, expected, 1e-6, 1e-8)


def leaves(arrays: Arrays, *names: str) -> list[Tensor]:
    return [tensor(arrays[name], grad=True) for name in names]


def gradients(loss: Tensor, arrays: Arrays, named: dict[str, Tensor], note: str = "") -> Iterator[Check]:
    for name, leaf in named.items():
        yield near(f"{name}{note}", gradient(loss, leaf), arrays[name])


def alone(image: Tensor, text: Tensor) -> Pairs:
    """A batch of one process."""
    return Pairs(image, text, image, text, 0)


def image_contrastive_simclr(arrays: Arrays) -> Iterator[Check]:
    one, two = leaves(arrays, "aug1_embed", "aug2_embed")
    for chunk in (0, 3):
        loss = image_contrastive_loss(one, two, float(arrays["temperature"]), chunk_size=chunk)
        yield near(f"loss, chunk {chunk}", loss, arrays["loss"])
        yield from gradients(loss, arrays, {"grad_aug1": one, "grad_aug2": two}, f", chunk {chunk}")


def slip_loss(arrays: Arrays) -> Iterator[Check]:
    image, text, one, two = leaves(arrays, "image_embed", "text_embed", "aug1_embed", "aug2_embed")
    clip = both_ways(alone(F.normalize(image, dim=-1), F.normalize(text, dim=-1)), float(arrays["logit_scale"]))
    own = image_contrastive_loss(one, two, float(arrays["ssl_temperature"]))
    total = clip + float(arrays["ssl_scale"]) * own
    yield from (near(name, value, arrays[name]) for name, value in {"clip_loss": clip, "ssl_loss": own, "loss": total}.items())
    yield from gradients(total, arrays, {"grad_image_embed": image, "grad_text_embed": text, "grad_aug1": one, "grad_aug2": two})


def moco(arrays: Arrays) -> Iterator[Check]:
    query, key = leaves(arrays, "q", "k")
    queue = tensor(arrays["queue"]).T
    loss, logits = moco_infonce(query, key, queue, float(arrays["temperature"]))
    yield near("loss", loss, arrays["loss"])
    yield near("logits", logits, arrays["logits"])
    yield Check("no gradient to the key", torch.autograd.grad(loss, key, allow_unused=True)[0] is None, True)
    after, at = push(queue, int(arrays["queue_ptr"]), key)
    yield near("new_queue", after.T, arrays["new_queue"])
    yield Check("new_queue_ptr", np.array([at]), arrays["new_queue_ptr"])
    slow = ema_update(tensor(arrays["param_k_weight_before"]), tensor(arrays["param_q_weight"]), float(arrays["momentum"]))
    yield near("param_k_weight_after", slow, arrays["param_k_weight_after"])


def simsiam(arrays: Arrays) -> Iterator[Check]:
    p1, z1, p2, z2 = leaves(arrays, "p1", "z1", "p2", "z2")
    loss = simsiam_loss(p1, z1, p2, z2)
    yield near("loss", loss, arrays["loss"])
    yield from gradients(loss, arrays, {"grad_p1": p1, "grad_p2": p2})
    yield Check("z gets no gradient", all(torch.autograd.grad(loss, z, allow_unused=True, retain_graph=True)[0] is None for z in (z1, z2)), True)


def otter_arrays(arrays: Arrays) -> Iterator[Check]:
    image, text = leaves(arrays, "image_features", "text_features")
    log_scale, epsilon, alpha = tensor(arrays["log_inverse_temperature"], grad=True), float(arrays["sinkhorn_lambda"]), float(arrays["alpha"])
    taught = otter.Taught(tensor(arrays["teacher_image_features"]), tensor(arrays["teacher_text_features"]), remove_diag=bool(arrays["remove_diag"]))
    count, iterations = len(image), int(arrays["sinkhorn_iter"])
    yield near("cost_i2t", -taught.similarity(0, count), arrays["cost_i2t"])
    for chunk in (0, 4):
        plans = otter.sinkhorn(lambda begin, end: taught.similarity(begin, end) / epsilon, count, iterations, chunk)
        log_plan = taught.similarity(0, count) / epsilon + plans[0].rows_N[:, None] + plans[0].columns_N
        yield near(f"sinkhorn_plan_i2t, chunk {chunk}", log_plan.exp() / count, arrays["sinkhorn_plan_i2t"])
        for name, plan, flip in zip(("target_i2t", "target_t2i"), plans, (False, True), strict=True):
            yield near(f"{name}, chunk {chunk}", (taught.similarity(0, count, flip) / epsilon + plan.columns_N).softmax(1), arrays[name])
        fixed = log_scale.detach().exp()
        hard, soft = otter.otter_loss(alone(image, text), taught, fixed, log_scale.exp(), epsilon=epsilon, iterations=iterations, chunk_size=chunk)
        total = alpha * hard + (1 - alpha) * soft
        for name, value in {"contrastive_loss": hard, "distill_loss": soft, "total": total}.items():
            yield near(f"{name}, chunk {chunk}", value, arrays[name])
        yield from gradients(total, arrays, {"grad_image_features": image, "grad_text_features": text, "grad_log_Ts": log_scale}, f", chunk {chunk}")
    # its label-smoothing baseline: 0.9 on the own pair, 0.1 / (N - 1) on each other one
    even = cross_entropy(image, text, log_scale.exp(), label_smoothing=0.1 * count / (count - 1))
    yield near("label_smoothed_ce_row_loss_alpha09", even, arrays["label_smoothed_ce_row_loss_alpha09"])


def pyramidclip_soft_infonce(arrays: Arrays) -> Iterator[Check]:
    image, text = leaves(arrays, "image_features", "text_features")
    scale, alpha, count = tensor(arrays["logit_scale"]), float(arrays["alpha"]), len(arrays["targets"])
    for chunk in (0, 4):
        loss = soft_infonce(image, text, scale, alpha, chunk_size=chunk)
        yield near(f"loss, chunk {chunk}", loss, arrays["loss"])
        yield from gradients(loss, arrays, {"grad_image_features": image, "grad_text_features": text}, f", chunk {chunk}")
    share = alpha * count / (count - 1)
    yield near("loss_i2t", cross_entropy(image, text, scale, label_smoothing=share), arrays["loss_i2t"])
    yield near("loss_t2i", cross_entropy(text, image, scale, label_smoothing=share), arrays["loss_t2i"])
    yield near("targets", (1 - share) * np.eye(count) + share / count, arrays["targets"])
    yield near("of pairs", softened(alone(image, text), scale, alpha), arrays["loss"])


def nn_supervision(arrays: Arrays) -> Iterator[Check]:
    one, two = leaves(arrays, "image_features_view1", "image_features_view2")
    text, augmented, bank = tensor(arrays["text_features"]), tensor(arrays["text_features_aug"]), tensor(arrays["bank"]).T
    neighbours = nearest(bank, text), nearest(bank, augmented)
    yield near("nn_text", neighbours[0][None], arrays["nn_text"])
    yield near("nn_text_aug", neighbours[1][None], arrays["nn_text_aug"])
    at = int(arrays["bank_ptr"])
    for name, rows in (("first", augmented), ("second", text)):
        bank, at = push(bank, at, rows, wrap=False)
        yield near(f"bank_after_{name}_update", bank.T, arrays[f"bank_after_{name}_update"])
        yield Check(f"ptr_after_{name}_update", np.array([at]), arrays[f"ptr_after_{name}_update"])
    for chunk in (0, 2):
        loss = nn_supervision_loss((one, two), neighbours, tensor(arrays["logit_scale"]), chunk_size=chunk)
        yield near(f"loss, chunk {chunk}", loss, arrays["loss"])
        yield from gradients(loss, arrays, {"grad_view1": one, "grad_view2": two}, f", chunk {chunk}")


def declip_multiview(arrays: Arrays) -> Iterator[Check]:
    one, two, text, augmented = leaves(arrays, "image_view1", "image_view2", "text", "text_aug")
    for chunk in (0, 2):
        loss = multi_view_loss((one, two), (text, augmented), tensor(arrays["logit_scale"]), chunk_size=chunk)
        yield near(f"multiview_clip_loss, chunk {chunk}", loss, arrays["multiview_clip_loss"])
        grads = {"grad_image_view1": one, "grad_image_view2": two, "grad_text": text, "grad_text_aug": augmented}
        yield from gradients(loss, arrays, grads, f", chunk {chunk}")
    parts = torch.cat([loss.detach()[None], tensor(arrays["nn_simsiam_mlm_losses"])])
    yield near("total", (parts * tensor(arrays["weights_clip_nn_simsiam_mlm"])).sum(), arrays["total"])


def filip(arrays: Arrays) -> Iterator[Check]:
    stored = leaves(arrays, "image_tokens", "text_tokens")
    image, text = (F.normalize(side, dim=-1) for side in stored)
    scale, top_k, count = tensor(arrays["logit_scale"]), int(arrays["top_k"]), int(arrays["n_tokens_full"])
    few_images, _ = select_tokens(image, text, top_k)
    few_texts, _ = select_tokens(text, image, top_k)
    yield near("logits_i2t_topk", scale * token_similarity(image, few_texts), arrays["logits_i2t_topk"])
    yield near("logits_t2i_topk", scale * token_similarity(text, few_images), arrays["logits_t2i_topk"])
    parts = [side.detach()[:, :count].clone().requires_grad_() for side in stored]
    full_image, full_text = (F.normalize(side, dim=-1) for side in parts)
    yield near("logits_i2t_full", scale * token_similarity(full_image, full_text), arrays["logits_i2t_full"])
    yield near("logits_t2i_full", scale * token_similarity(full_text, full_image), arrays["logits_t2i_full"])
    for chunk in (0, 3):
        loss = filip_loss(image, text, scale, top_k=top_k, chunk_size=chunk)
        yield near(f"loss_topk, chunk {chunk}", loss, arrays["loss_topk"])
        yield from gradients(loss, arrays, {"grad_image_tokens": stored[0], "grad_text_tokens": stored[1]}, f", chunk {chunk}")
        loss = filip_loss(full_image, full_text, scale, chunk_size=chunk)
        yield near(f"loss_full, chunk {chunk}", loss, arrays["loss_full"])
        yield from gradients(loss, arrays, {"grad_image_tokens_full": parts[0], "grad_text_tokens_full": parts[1]}, f", chunk {chunk}")
    mask = tensor(arrays["text_mask"])
    yield near("sim_i2t_masked_unscaled", token_similarity(image, text, None, mask), arrays["sim_i2t_masked_unscaled"])
    yield near("sim_t2i_masked_unscaled", token_similarity(text, image, mask), arrays["sim_t2i_masked_unscaled"])


def zerovl_mixup(arrays: Arrays) -> Iterator[Check]:
    image, text = leaves(arrays, "image_embeddings", "text_embeddings")
    share, scale = float(arrays["mix_lambda"]), 1 / float(arrays["temperature"])
    for chunk in (0, 4):
        loss = mixup_infonce(alone(image, text), share, scale, chunk_size=chunk)
        yield near(f"loss, chunk {chunk}", loss, arrays["loss"])
        yield from gradients(loss, arrays, {"grad_image": image, "grad_text": text}, f", chunk {chunk}")
    yield near("mixed_images", mix(tensor(arrays["images"]), share), arrays["mixed_images"])
    yield near("mixed_text_embeddings", F.normalize(mix(tensor(arrays["text_projected"]), share), dim=-1), arrays["mixed_text_embeddings"])


def unicl(arrays: Arrays) -> Iterator[Check]:
    image, text = leaves(arrays, "image_features", "text_features")
    labels = tensor(arrays["labels"])
    yield near("targets", unicl_targets(labels), arrays["targets"])
    remapped, own = tensor(arrays["remapped_labels"]), own_labels(labels)
    yield Check("classes are those of remapped_labels", own[:, None] == own, (remapped[:, None] == remapped).numpy())
    for chunk in (0, 3):
        loss = unicl_loss(alone(image, text), tensor(arrays["logit_scale"]), own, own, chunk_size=chunk)
        yield near(f"loss, chunk {chunk}", loss, arrays["loss"])
        yield from gradients(loss, arrays, {"grad_image_features": image, "grad_text_features": text}, f", chunk {chunk}")


def mlm_masking(arrays: Arrays) -> Iterator[Check]:
    uniform = [tensor(arrays[f"uniform_{name}"]) for name in ("select", "replace", "random")]
    special, mask_id, words = arrays["special_ids"].tolist(), int(arrays["mask_token_id"]), tensor(arrays["random_words"])
    ids, labels = mask_tokens(tensor(arrays["input_ids"]), special, mask_id, float(arrays["mlm_probability"]), *uniform, words)
    yield Check("masked_input_ids", ids, arrays["masked_input_ids"])
    yield Check("labels", labels, arrays["labels"])


def masked_prediction(arrays: Arrays) -> Iterator[Check]:
    hidden, labels = tensor(arrays["hidden_states"], grad=True), tensor(arrays["masked_labels"])
    head = MaskedHead(hidden.shape[-1], len(arrays["decoder_bias"])).double()
    parts = {"dense": head.dense, "ln": head.norm, "decoder": head.decode}
    with torch.no_grad():
        for name, part in parts.items():
            part.weight.copy_(tensor(arrays[f"{name}_weight"]))
            part.bias.copy_(tensor(arrays[f"{name}_bias"]))
    ignored = int(arrays["ignore_index"])
    loss = masked_prediction_loss(hidden, labels, head, ignored)
    yield near("logits_of_masked_rows", head(hidden[labels != ignored]), arrays["logits_of_masked_rows"])
    yield near("loss", loss, arrays["loss"])
    yield from gradients(loss, arrays, {"grad_hidden_states": hidden})


def beit_block_masking(arrays: Arrays) -> Iterator[Check]:
    dice = Random(int(arrays["python_random_seed"]))
    sizes = int(arrays["window"]), int(arrays["num_masking_patches"])
    masks = [block_mask(*sizes, dice, int(arrays["min_num_patches"]), float(arrays["min_aspect"])) for _ in arrays["masks"]]
    yield Check("masks", np.stack(masks).astype(np.int64), arrays["masks"])


def mae_arrays(arrays: Arrays) -> Iterator[Check]:
    images, side, predicted = tensor(arrays["images"]), int(arrays["patch_size"]), tensor(arrays["pred"], grad=True)
    yield near("patches", mae.patchify(images, side), arrays["patches"])
    yield near("unpatchify", mae.unpatchify(tensor(arrays["patches"]), side), arrays["images"])
    seen, removed, restore = mae.random_masking(tensor(arrays["noise"]), float(arrays["mask_ratio"]))
    tokens = tensor(arrays["tokens"])
    yield near("kept_tokens", tokens.gather(1, seen[..., None].expand(-1, -1, tokens.shape[-1])), arrays["kept_tokens"])
    yield near("mask", removed, arrays["mask"])
    yield Check("ids_restore", restore, arrays["ids_restore"])
    for name, norm_pix in (("", False), ("_norm_pix", True)):
        loss = mae.mae_loss(images, predicted, removed, side, norm_pix)
        yield near(f"loss{name}", loss, arrays[f"loss{name}"])
        yield from gradients(loss, arrays, {f"grad_pred{name}": predicted})


def coca_loss(arrays: Arrays) -> Iterator[Check]:
    image, text, logits = leaves(arrays, "image_features", "text_features", "caption_logits")
    contrast = float(arrays["contrastive_loss_weight"]) * both_ways(alone(image, text), tensor(arrays["logit_scale"]))
    labels, write = tensor(arrays["caption_labels"]), nn.Identity()  # the logits are given: nothing is left to write or to say
    for chunk in (0, 1):
        mean = word_loss(write, [logits], labels, labels != int(arrays["pad_id"]), nn.Identity(), chunk_size=chunk)
        caption = float(arrays["caption_loss_weight"]) * mean
        for name, value in {"contrastive_loss": contrast, "caption_loss": caption, "total": contrast + caption}.items():
            yield near(f"{name}, chunk {chunk}", value, arrays[name])
        named = {"grad_image_features": image, "grad_text_features": text, "grad_caption_logits": logits}
        yield from gradients(contrast + caption, arrays, named, f", chunk {chunk}")


def itm_flava(arrays: Arrays) -> Iterator[Check]:
    hidden = tensor(arrays["hidden_states"], grad=True)
    pool, decide = nn.Linear(hidden.shape[-1], hidden.shape[-1]).double(), nn.Linear(hidden.shape[-1], 2).double()
    with torch.no_grad():
        for name, part in {"pooler": pool, "head": decide}.items():
            part.weight.copy_(tensor(arrays[f"{name}_weight"]))
            part.bias.copy_(tensor(arrays[f"{name}_bias"]))
    logits = itm_logits(hidden[:, 0], pool, decide)
    loss = F.cross_entropy(logits, tensor(arrays["labels"]), ignore_index=int(arrays["ignore_index"]))
    yield near("logits", logits, arrays["logits"])
    yield near("loss", loss, arrays["loss"])
    yield from gradients(loss, arrays, {"grad_hidden_states": hidden})


def itc_queue_hard_negatives(arrays: Arrays) -> Iterator[Check]:
    image, text = leaves(arrays, "image_features", "text_features")
    queues = tensor(arrays["image_queue"]).T, tensor(arrays["text_queue"]).T
    scale = 1 / float(arrays["temperature"])
    sim_i2t, sim_t2i = logits(image, torch.cat([text, queues[1]]), scale), logits(text, torch.cat([image, queues[0]]), scale)
    valid = len(image) + int(arrays["queue_valid"])
    weights = {"weights_i2t": itm.hard_negative_weights(sim_i2t, valid), "weights_t2i": itm.hard_negative_weights(sim_t2i, valid)}
    for name, value in {"sim_i2t": sim_i2t, "sim_t2i": sim_t2i, **weights}.items():
        yield near(name, value, arrays[name])
    for chunk in (0, 3):
        loss = itc_queue_loss(image, text, *queues, scale, chunk_size=chunk)
        yield near(f"loss, chunk {chunk}", loss, arrays["loss"])
        yield from gradients(loss, arrays, {"grad_image_features": image, "grad_text_features": text}, f", chunk {chunk}")


def glip_alignment(arrays: Arrays) -> Iterator[Check]:
    queries, words = leaves(arrays, "visual_queries", "text_embedding")
    head = region_text.RegionWordHead(queries.shape[-1], words.shape[-1]).double()
    yield near("bias0 of an untrained head", head.bias, arrays["bias0"])
    stored = {"project.weight": "text_proj_weight", "project.bias": "text_proj_bias", "bias_E": "bias_lang", "bias": "bias0", "log_scale": "log_scale"}
    head.load_state_dict({name: tensor(arrays[array]) for name, array in stored.items()})
    logits = head(queries, words)
    total = regions.token_sigmoid_focal_loss(logits, tensor(arrays["targets"]), tensor(arrays["text_mask"]), float(arrays["alpha"]), float(arrays["gamma"]))
    loss = total / float(arrays["num_pos"])
    for name, value in {"logits": logits, "loss_sum": total, "loss": loss}.items():
        yield near(name, value, arrays[name])
    yield from gradients(loss, arrays, {"grad_visual_queries": queries, "grad_text_embedding": words})


def segclip_center_assign(arrays: Arrays) -> Iterator[Check]:
    scores, values = leaves(arrays, "attn", "values")
    hard = vit_grouping.center_assign(scores, tensor(arrays["gumbel_noise"]), float(arrays["tau"]))
    pooled = vit_grouping.center_pool(hard, values)
    yield near("hard_assign", hard, arrays["hard_assign"])
    yield near("hard_assign_eval", vit_grouping.center_assign(scores), arrays["hard_assign_eval"])
    yield near("center_outputs", pooled, arrays["center_outputs"])
    objective = (pooled**2).sum()
    yield near("objective", objective, arrays["objective"])
    yield from gradients(objective, arrays, {"grad_attn": scores, "grad_values": values})


def segclip_superpixel_kl(arrays: Arrays) -> Iterator[Check]:
    scores, superpixels = tensor(arrays["assign_logits"], grad=True), tensor(arrays["superpixels"]).flatten(1)
    hard = vit_grouping.center_assign(scores)
    yield near("hard_assign", hard, arrays["hard_assign"])
    assigned = hard.transpose(1, 2)
    yield near("cluster_mean", grouping.superpixel_means(assigned, superpixels), arrays["cluster_mean"])
    loss = grouping.superpixel_kl(assigned, superpixels)
    yield near("loss", loss, arrays["loss"])
    yield from gradients(loss, arrays, {"grad_assign_logits": scores})


OBJECTIVES: dict[str, Entry] = {
    "beit_block_masking": beit_block_masking,
    "coca_loss": coca_loss,
    "declip_multiview": declip_multiview,
    "filip": filip,
    "glip_alignment": glip_alignment,
    "image_contrastive_simclr": image_contrastive_simclr,
    "itc_queue_hard_negatives": itc_queue_hard_negatives,
    "itm_flava": itm_flava,
    "mae": mae_arrays,
    "masked_prediction_loss": masked_prediction,
    "mlm_masking": mlm_masking,
    "moco_infonce": moco,
    "nn_supervision": nn_supervision,
    "otter": otter_arrays,
    "pyramidclip_soft_infonce": pyramidclip_soft_infonce,
    "segclip_center_assign": segclip_center_assign,
    "segclip_superpixel_kl": segclip_superpixel_kl,
    "simsiam_loss": simsiam,
    "slip_loss": slip_loss,
    "unicl_loss": unicl,
    "zerovl_mixup": zerovl_mixup,
}
