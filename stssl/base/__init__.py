"""Hold what all other folders use.

`config`, `yaml_text`, `mistakes` and `paths` read recipes; `json_types` and `textfiles` JSON and lists; `errors` and
`logs` speak to the user; `batch` and `labels` define what a step gets; `randomness`, `distributed` and `ray_session`
are shared by all runs; `whole_files` writes files safely.

Import from these modules directly. This package exports nothing itself: some modules need torch, which takes seconds
to import, and the command line must show its help without it.
"""

__all__: list[str] = []
