"""Land-cover classifiers from few labels and many unlabeled satellite patches."""

__version__ = "0.2.0"
