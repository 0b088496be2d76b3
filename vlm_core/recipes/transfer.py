"""Named settings of features, transfer and evaluate. A function's return type says which verb it belongs to; the first is the verb's default.

The short names (tip_adapter ...) are what the demo runs: scaled to two CPU cores. Those ending in _paper are the papers' own settings.
"""

from vlm_core.evaluate.config import Evaluate
from vlm_core.models.features_config import Features
from vlm_core.train.config import Transfer
from vlm_core.transfer.config import Coop, LinearProbe, TipAdapter, TipAdapterF, Training, ZeroShot

# ---- features


def demo_features() -> Features:
    """Every labelled set, no augmented views."""
    return Features()


def tip_features() -> Features:
    """With the ten augmented views of Tip-Adapter's paper."""
    return Features(views=10)


# ---- transfer


def zero_shot() -> Transfer:
    """Class names in the first template."""
    return Transfer(method=ZeroShot())


def zero_shot_ensemble() -> Transfer:
    """Class names in all templates."""
    return Transfer(method=ZeroShot(templates="ensemble"))


def linear_probe() -> Transfer:
    """The quick one: CoOp's few-shot linear probe with fewer halvings and iterations; linear_probe_full is CLIP's protocol."""
    return Transfer(method=LinearProbe(steps=4, max_iter=200))


def linear_probe_paper() -> Transfer:
    """CoOp's few-shot linear probe as published."""
    return Transfer(method=LinearProbe())


def linear_probe_full() -> Transfer:
    """CLIP's linear probe (arXiv 2103.00020, A.3): the whole training split, strength searched at eight a decade over twelve decades, refitted with the validation split."""
    return Transfer(method=LinearProbe(protocol="clip"), shots=[0])


def tip_adapter() -> Transfer:
    """Tip-Adapter, training-free."""
    return Transfer(method=TipAdapter())


def tip_adapter_f() -> Transfer:
    """Tip-Adapter-F."""
    return Transfer(method=TipAdapterF())


def coop() -> Transfer:
    """CoOp from 'a photo of a' in few epochs, so that all methods share two minutes of two cores. The rate was chosen on validation
    accuracy of emoji_groups (16 shots, seed 1): .44 at 0.02, .51 at 0.1, .58 at 0.5, .51 at 2."""
    return Transfer(method=Coop(words="a photo of a", training=Training(lr=0.5, epochs=8, warmup_epochs=0)))


def coop_paper() -> Transfer:
    """CoOp as published: 16 context tokens, 50 to 200 epochs."""
    return Transfer(method=Coop())


# ---- evaluate


def standard_evaluate() -> Evaluate:
    """Zero-shot, retrieval, matching and linear probe on everything held out."""
    return Evaluate()
