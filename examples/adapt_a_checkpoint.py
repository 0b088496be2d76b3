"""Two adapters on one model, from four pictures per class. `python examples/adapt_a_checkpoint.py MODEL EVAL_SETS DATASET OUT`"""

import sys
from pathlib import Path

from vlm_core.run import load, run

model, eval_sets, dataset, out = (Path(word) for word in sys.argv[1:])
_, features = load("features")
run("features", features, {"model": model, "eval_sets": eval_sets}, out / "features")
for method in ("tip_adapter", "linear_probe"):
    _, config = load("transfer", method, changes=(f"dataset={dataset}", "shots=[4]", "seeds=[1, 2, 3]"))
    report = run("transfer", config, {"features": out / "features", "model": model}, out / method, recipe=method)
    print(method, {name: round(value, 4) for name, value in report.metrics.items() if "accuracy" in name})
