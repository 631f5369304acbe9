"""Write and read the scores of groups of patches, such as countries.

They lie in two files: a table for programs (Parquet), and the same rows with settings and notes as JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pyarrow
import pyarrow.parquet

from stssl.base.errors import RunError, first_line
from stssl.base.json_types import JsonMapping
from stssl.base.whole_files import is_there, write_whole
from stssl.scoring.evaluation import without_nan
from stssl.scoring.groups import GroupOptions, GroupRow, GroupScores

_NUMBERS = {"patches": pyarrow.int64(), "blocks": pyarrow.int64()}
_NUMBERS |= dict.fromkeys(("value", "low", "high"), pyarrow.float64())
SCHEMA = pyarrow.schema([(field.name, _NUMBERS.get(field.name, pyarrow.string())) for field in fields(GroupRow)])


def save_groups(found: GroupScores, options: GroupOptions, path: Path, about: JsonMapping) -> None:
    """Write the scores of groups of patches as `<path>.parquet` and `<path>.json`.

    Args:
        found: Scores of groups, the worst groups, and notes.
        options: How the groups and intervals were made.
        path: Path of both files, without suffix.
        about: Entries about the run and the evaluation to add to the JSON.

    Raises:
        RunError: A file cannot be written.
    """
    rows = [asdict(row) for row in found.rows]
    table = pyarrow.Table.from_pylist(rows, SCHEMA)
    write_whole(path.with_name(path.name + ".parquet"), lambda file: pyarrow.parquet.write_table(table, file))
    content = {
        **about,
        "options": asdict(options),
        "notes": found.notes,
        "worst": [without_nan(asdict(one)) for one in found.worst],
        "rows": [without_nan(row) for row in rows],
    }
    write_whole(path.with_name(path.name + ".json"), json.dumps(content, indent=1))


def read_groups(path: Path) -> Sequence[GroupRow]:
    """Return the scores of groups in the file `<path>.parquet`: an entry for each network, group and score.

    Args:
        path: Path of the file, without suffix.

    Raises:
        RunError: The file is missing or damaged, or another version of this program wrote it.
    """
    file = path.with_name(path.name + ".parquet")
    if not is_there(file):
        raise RunError(f"there is no {file}: evaluate the run with --by COLUMN")
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise RunError(f"cannot read {file}: {first_line(error)}. Evaluate the run again.") from None
    if table.schema.names != SCHEMA.names:
        raise RunError(f"{file} has other columns than this version writes. Evaluate the run again.")
    return [GroupRow(**row) for row in table.to_pylist()]
