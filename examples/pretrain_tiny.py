"""A recipe with three changes, trained from Python. `python examples/pretrain_tiny.py SHARDS OUT [a.b=c ...]`"""

import sys
from pathlib import Path

from vlm_core.recipes.pretrain.base import clip_tiny
from vlm_core.run import run

shards, out, *changes = sys.argv[1:]
config = clip_tiny().but("objectives.image_text_contrastive=null", "objectives.sigmoid={}", "model.scale={init: 10, bias: -10}", *changes)
report = run("pretrain", config, {"shards": Path(shards)}, Path(out), recipe="my_siglip")
print(
    f"{report.counts['steps']} steps at {report.metrics['pairs_per_s']:.0f} pairs/s, loss {report.metrics['final_loss']:.3f}, trained on {report.provenance['inputs']['shards']}"
)
