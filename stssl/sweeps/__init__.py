"""Sweeps: many runs of one recipe with other values, chosen by Optuna and carried out by Ray Tune."""
