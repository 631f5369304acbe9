"""List the algorithms.

A new algorithm is one file in this folder and one line here. The file is named after the algorithm and defines a
subclass of `Algorithm` whose `config_type` is its configuration; recipes, searches, tests and help texts take it up
from this list. Nothing is imported here, so that `stssl train --help` need not wait for torch.
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
"""Names of the algorithms, which are also names of files, in the order of tables and messages."""
