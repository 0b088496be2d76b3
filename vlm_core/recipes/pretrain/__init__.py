"""Named settings of pre-training: papers as compositions, and what the demo trains. One file per family; every function is found by existing.

One system is a pair of functions: the paper's sizes, and tiny. Where a paper trains with LAMB, SGD or Adafactor we train with AdamW; where it has other
towers we take CLIP's ViT unless the tower is the point, so that methods can be compared.
"""
