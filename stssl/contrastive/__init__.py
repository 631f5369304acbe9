"""Geography-aware self-supervised pretraining (Ayush et al., ICCV 2021, arXiv:2011.09980)."""
