"""Score networks: metrics of predictions, evaluation on a part of the data, and k-NN on frozen features.

Register new metrics in `stssl/scoring/metrics.py`. Import from the modules directly: they need torch, so this package
does not import them.
"""

__all__: list[str] = []
