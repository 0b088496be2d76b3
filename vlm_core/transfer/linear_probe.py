"""Linear probe: CLIP's protocol (arXiv 2103.00020, appendix A) and CoOp's few-shot search (arXiv 2109.01134, lpclip/linear_probe.py).

Features are raw, after the projection, as in both public scripts. The equations are in `vlm_core/evaluate/probe.py`.
Checked by golden `transfer/linear_probe_l2_search` and `evaluation/linear_probe_lbfgs`.
"""
# B batch, C classes, D joint width

import torch
from torch import Tensor

from vlm_core.errors import DataError
from vlm_core.evaluate.probe import Probe, choose, search, sweep
from vlm_core.transfer.base import Setting, Support, TransferMethod
from vlm_core.transfer.config import LinearProbe


class LinearProbeMethod(TransferMethod):
    setting = Setting.SUPERVISED
    weight_CD: Tensor
    bias_C: Tensor
    strength: Tensor

    def __init__(self, config: LinearProbe, classes: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weight_CD", torch.zeros(classes, width))
        self.register_buffer("bias_C", torch.zeros(classes))
        self.register_buffer("strength", torch.tensor(float("nan"), dtype=torch.float64))  # the chosen C

    def logits(self, image_BD: Tensor) -> Tensor:
        return image_BD @ self.weight_CD.T + self.bias_C

    def tune(self, support: Support) -> None:
        train = support.views_VND[0].double().numpy(), support.labels_N.numpy()
        val = support.val_MD.double().numpy(), support.val_labels_M.numpy()
        if not len(val[1]):
            raise DataError("Found no validation pictures, expected some to choose the strength of the linear probe; use a data set with a val split.")
        config = self.config
        found: Probe
        match config.protocol:
            case "clip":
                found = sweep(*train, *val, config.max_iter)
            case "grid":
                found = choose(*train, *val, config.grid, config.max_iter)
            case "coop":
                found = list(search(*train, *val, config.steps, config.max_iter))[-1]
        self._read(found)

    def _read(self, found: Probe) -> None:
        """Copy scikit-learn's coefficients; two classes come as one row, which is a difference of scores."""
        weight, bias = torch.tensor(found.model.coef_), torch.tensor(found.model.intercept_)
        if len(found.model.classes_) == 2:
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        self.bias_C.fill_(-torch.inf)  # a class without a picture is never predicted
        self.weight_CD.zero_()
        self.weight_CD[found.model.classes_] = weight.to(self.weight_CD)
        self.bias_C[found.model.classes_] = bias.to(self.bias_C)
        self.strength.fill_(found.c)


def build(config: LinearProbe, support: Support) -> LinearProbeMethod:
    return LinearProbeMethod(config, len(support.classnames), support.val_MD.shape[1])
