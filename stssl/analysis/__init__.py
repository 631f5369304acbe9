"""Examine runs: probe their features, report and draw their scores, and plan what a recipe will cost."""
