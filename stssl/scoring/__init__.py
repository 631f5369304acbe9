"""Score networks: metrics of predictions, evaluation of a part of the split, and k-NN on frozen features.

A new metric is registered in `stssl/scoring/metrics.py`. Import from the modules directly: they need torch.
"""

__all__: list[str] = []
