"""Pretrain backbones without labels: contrastive learning with pairs of one place, and a geographic pretext task.

The method is geography-aware self-supervised learning (Ayush et al., ICCV 2021, arXiv:2011.09980).
`stssl/recipes/pretraining.py` defines the recipe of a pretraining run. `stssl/training/contrastive_task.py` defines its
task.
"""

__all__: list[str] = []
