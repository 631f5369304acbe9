"""Examine runs and recipes: probe features, report and draw scores, and plan what a recipe will cost.

`probe.py` scores a pretrained backbone, `report.py` writes a page about runs with `figures.py` and `page.py`, and
`planning.py` measures steps for the estimates of `costs.py`. Import from these modules: this one imports nothing, since
most of them need torch.
"""
