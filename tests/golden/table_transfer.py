"""Golden `transfer/`: text ensembling, prompt assembly, Tip-Adapter, the few-shot probe, schedules, seed statistics."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from tests.golden.check import Arrays, Check, Entry, gradient, tensor
from vlm_core.data.eval_sets import few_shot
from vlm_core.evaluate import probe, segmentation, statistics
from vlm_core.models import prompts
from vlm_core.train.adapt import lr_per_epoch
from vlm_core.transfer import cache
from vlm_core.transfer.base import Support
from vlm_core.transfer.config import TipAdapterF
from vlm_core.transfer.tip_adapter_f import build as build_tip_adapter_f

TIGHT = {"rtol": 1e-4, "atol": 1e-5}


def coop_prompt_assembly(a: Arrays) -> Iterator[Check]:
    prefix, suffix, name_lens = tensor(a["token_prefix"]), tensor(a["token_suffix"]), a["name_lens"].tolist()
    for kind in ("unified", "csc"):
        for position in ("end", "middle", "front"):
            context = tensor(a[f"ctx_{kind}"], grad=True)
            got = prompts.assemble_prompts(prefix, context, suffix, name_lens, position)
            probe_sum = (got * torch.arange(got.numel(), dtype=got.dtype).sin().reshape(got.shape)).sum()
            yield Check(f"prompts_{kind}_{position}", got, a[f"prompts_{kind}_{position}"], **TIGHT)
            yield Check(f"grad_ctx_{kind}_{position}", gradient(probe_sum, context), a[f"grad_ctx_{kind}_{position}"], **TIGHT)


def fewshot_sampling(a: Arrays) -> Iterator[Check]:
    for name in (key for key in a if key.startswith("train_idx_")):
        seed, shots = (int(part[1:]) for part in name.split("_")[2:])
        train, val = few_shot.fewshot_indices(a["train_labels"], shots, seed, a["val_labels"])
        yield Check(name, train, a[name])
        yield Check(name.replace("train", "val"), val, a[name.replace("train", "val")])
    for which in ("base", "new"):
        rows, labels = few_shot.base_new_split(a["train_labels"], which)
        yield Check(f"{which}_idx", rows, a[f"{which}_idx"])
        yield Check(f"{which}_labels", labels, a[f"{which}_labels"])


def linear_probe_l2_search(a: Arrays) -> Iterator[Check]:
    yield Check("coarse_C", probe.COARSE, a["coarse_C"])
    finals, last_acc, steps = [], [], []
    for shots, seed in a["shot_seed"].tolist():
        random = np.random.RandomState(seed)
        train = _draw(random, a["train_y"], shots)
        val = _draw(random, a["val_y"], min(shots, 4))
        x, y, vx, vy = a["train_x"][train], a["train_y"][train], a["val_x"][val], a["val_y"][val]
        coarse = probe.coarse_accuracies(x, y, vx, vy)
        found = list(probe.bisect(probe.COARSE[int(np.argmax(coarse))], x, y, vx, vy))
        scores = [100 * probe.accuracy(step.model, a["test_x"], a["test_y"]) for step in found]
        finals.append(found[-1].c)
        last_acc.append(scores[-1])
        steps += [(seed, shots, step.c, score) for step, score in zip(found, scores, strict=True)]
        yield Check(f"coarse_val_acc[{shots},{seed}]", coarse, a["coarse_val_acc"][len(finals) - 1])
    yield Check("final_C", finals, a["final_C"], 1e-6, 0)
    yield Check("test_acc", last_acc, a["test_acc"], 0, 1.5)
    yield Check("all_steps_seed_shot_C_acc", _sorted(np.array(steps)), _sorted(a["all_steps_seed_shot_C_acc"]), 1e-4, 1.5)


def _draw(random: np.random.RandomState, labels: np.ndarray, shots: int) -> np.ndarray:
    """The official script's few shots: NumPy's legacy generator, class by class."""
    return np.concatenate([random.choice(np.where(labels == c)[0], size=shots, replace=False) for c in np.unique(labels)])


def _sorted(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def seed_statistics(a: Arrays) -> Iterator[Check]:
    found = statistics.seed_statistics(a["accuracies"])
    yield Check("mean", found.mean, a["mean"], **TIGHT)
    yield Check("std_population", found.std, a["std_population"], **TIGHT)
    yield Check("ci95", found.ci95, a["ci95"], **TIGHT)
    yield Check("harmonic_mean", segmentation.harmonic_mean(float(a["base"]), float(a["new"])), a["harmonic_mean"], **TIGHT)


def text_ensembling(a: Arrays) -> Iterator[Check]:
    embeddings, counts = tensor(a["embeddings_raw"]), a["counts"].tolist()
    yield Check("class_weights", prompts.ensemble_text(embeddings, counts).T, a["class_weights"], **TIGHT)
    yield Check("class_weights_rawmean", prompts.raw_mean_text(embeddings, counts), a["class_weights_rawmean"], **TIGHT)


def tip_adapter(a: Arrays) -> Iterator[Check]:
    text_DC, scale = tensor(a["clip_weights"]), 100.0
    keys_DN, values_NC = cache.build_cache(tensor(a["augmented_view_features"]), tensor(a["cache_labels"]), text_DC.shape[1])
    yield Check("cache_keys", keys_DN, a["cache_keys"], **TIGHT)
    yield Check("cache_values", values_NC, a["cache_values"], **TIGHT)
    val, test = F.normalize(tensor(a["val_features"]), dim=-1), F.normalize(tensor(a["test_features"]), dim=-1)
    most, steps = tuple(a["search_scale"].tolist()), tuple(a["search_step"].tolist())
    found = cache.tip_search(val, tensor(a["val_labels"]), text_DC, keys_DN, values_NC, most, steps, scale)
    yield Check("best_beta", found.beta, a["best_beta"], **TIGHT)
    yield Check("best_alpha", found.alpha, a["best_alpha"], **TIGHT)
    yield Check("val_acc_best", 100 * found.accuracy, a["val_acc_best"], **TIGHT)
    zero_shot = (scale * val @ text_DC).argmax(1) == tensor(a["val_labels"])
    yield Check("zs_val_acc", 100 * zero_shot.double().mean(), a["zs_val_acc"], **TIGHT)
    for name in ("init", "best"):
        got = cache.tip_logits(test, text_DC, keys_DN, values_NC, float(a[f"{name}_alpha"]), float(a[f"{name}_beta"]), scale)
        yield Check(f"logits_{name}", got, a[f"logits_{name}"], **TIGHT)
    yield from _tip_adapter_f(a, text_DC.T)


def _tip_adapter_f(a: Arrays, text_CD: torch.Tensor) -> Iterator[Check]:
    support = Support(
        tensor(a["augmented_view_features"]), tensor(a["cache_labels"]), tensor(a["val_features"]), tensor(a["val_labels"]), text_CD, text_CD,
        [str(c) for c in range(len(text_CD))],
    )  # fmt: skip
    method = build_tip_adapter_f(TipAdapterF(alpha=float(a["init_alpha"]), beta=float(a["init_beta"])), support)
    loss = method.loss(tensor(a["test_features"]), tensor(a["test_labels"]))["cross_entropy"]
    yield Check("tipf_loss", loss, a["tipf_loss"], **TIGHT)
    yield Check("tipf_grad_keys", gradient(loss, method.keys_ND), a["tipf_grad_keys"], **TIGHT)


def warmup_cosine_schedule(a: Arrays) -> Iterator[Check]:
    for name in (key for key in a if key.endswith("_args_lr_epochs_warmup_conslr")):
        case = name.partition("_")[0]
        lr, epochs, warmup, warmup_lr = a[name].tolist()
        yield Check(f"{case}_lr_per_epoch", lr_per_epoch(lr, int(epochs), int(warmup), warmup_lr), a[f"{case}_lr_per_epoch"], 1e-6, 1e-12)


TABLE: dict[str, Entry] = {
    function.__name__: function
    for function in (coop_prompt_assembly, fewshot_sampling, linear_probe_l2_search, seed_statistics, text_ensembling, tip_adapter, warmup_cosine_schedule)
}
