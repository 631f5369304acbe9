"""Score networks: metrics, passes over a split, k-NN of features."""
