"""Search recipe keys: many runs of one recipe with other values, chosen by Optuna and trained by Ray Tune.

`spec.py` reads a sweep file, `domains.py` and `space.py` make the search space of it, `study.py` keeps the trials,
`tuning.py` and `trials.py` train them, and `run.py` puts everything together. Import from these modules: this one
imports nothing, since most of them need torch or Ray.
"""
