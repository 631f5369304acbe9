"""Pretrain encoders without labels: contrastive learning with pairs of one place, and a geographic pretext task.

The method is geography-aware self-supervised learning (Ayush et al., ICCV 2021, arXiv:2011.09980). The recipe of a
pretraining run is in `stssl/recipes/pretraining.py`, its task in `stssl/training/contrastive_task.py`.
"""

__all__: list[str] = []
