"""List the names of the algorithms of semi-supervised training.

To add an algorithm, write one file in this folder and add one line here. The file has the name of the algorithm and
defines a subclass of `Algorithm`. The `config_type` of this subclass is the algorithm's configuration. Recipes,
searches, tests and help texts read this list. Import nothing here: `stssl train --help` must not wait for torch.
"""

NAMES = (
    "supervised",
    "fixmatch",
    "flexmatch",
    "freematch",
    "softmatch",
    "defixmatch",
    "udal",
    "cap",
    "cdmad",
    "mean_teacher",
    "adamatch",
)
"""Names of the algorithms and of their files. Tables and messages list them in this order."""
