"""Hold the modules that all other folders use.

- `config`, `yaml_text`, `mistakes` and `paths` read recipes.
- `json_types` and `textfiles` read JSON and lists.
- `errors` and `logs` speak to the user.
- `batch` and `labels` define the data of a step.
- `randomness`, `distributed` and `ray_session` serve all runs.
- `whole_files` writes files safely.

Import from these modules directly; this package exports no names. Some modules need torch, and torch takes seconds to
import. The command line must show its help without it.
"""

__all__: list[str] = []
