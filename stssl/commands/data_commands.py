"""Define the subcommands that make, convert, check and describe data.

Each subcommand imports what it needs inside its function, so that `stssl --help` stays fast.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from stssl.archives.formats import FORMATS
from stssl.commands.arguments import Overrides, given_options, local_path, new_store, result_path, store_place
from stssl.commands.terminal import console


def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder that keeps everything.", callback=result_path)] = Path("quickstart"),
    patches: Annotated[int, typer.Option(min=200, help="Patches of the generated archive.")] = 4000,
    keep: Annotated[
        Literal["all", "store", "none"],
        typer.Option(help="What stays of the generated data: all (1.1 GB), the store (0.5 GB) or none (35 MB)."),
    ] = "store",
    overrides: Overrides = None,
) -> None:
    """Run all steps on generated data: archive, store, training on two workers, evaluation, report."""
    from stssl.commands.quick_start import run_quickstart

    print(run_quickstart(out, console, patches, tuple(overrides or ()), keep))


def synthesize_command(
    out: Annotated[Path, typer.Argument(help="Folder to write.", callback=result_path)],
    patches: Annotated[int, typer.Option(min=1, help="How many patches.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same bytes.")] = 0,
    locations: Annotated[
        Path | None, typer.Option(help="CSV table of places, dates and classes to copy.", callback=local_path)
    ] = None,
    confounded: Annotated[bool, typer.Option(help="Let the date depend on the country.")] = True,
    placeless: Annotated[
        bool, typer.Option("--placeless", help="Let labels depend on pixels only: place and date tell nothing.")
    ] = False,
    misleading: Annotated[
        str | None,
        typer.Option(
            metavar="COUNTRY", help="Let dates tell in this country the opposite of what they tell elsewhere."
        ),
    ] = None,
) -> None:
    """Write a synthetic archive in the file layout of BigEarthNet v1.0."""
    from stssl.api.progress import counting
    from stssl.archives.synthetic import synthesize_archive

    with counting(console, "write", "patches") as progress:
        written = synthesize_archive(
            out,
            patches,
            seed,
            locations=locations,
            confounded=confounded,
            placeless=placeless,
            misleading=misleading,
            progress=progress,
        )
    print(written)


def convert_command(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="NAME", help=f"{', '.join(FORMATS)}. `stssl convert NAME --help` lists its options."),
    ],
    archive: Annotated[
        list[Path], typer.Argument(help="Folder or file of the archive; several scenes.", callback=local_path)
    ],
    store: Annotated[str, typer.Argument(help="Zarr store to write: a folder or a URL.", callback=new_store)],
    codec: Annotated[str, typer.Option(help="lz4, zstd or none.")] = "lz4",
    shard: Annotated[int, typer.Option(min=1, help="Patches a shard.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first patches.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first bad patch.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 converts without Ray.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Cluster to convert on.")] = None,
) -> None:
    """Convert an archive to a Zarr store; the same command resumes an interrupted conversion."""
    from stssl.api.progress import conversion_summary, counting
    from stssl.archives.conversion import Options, convert_archive

    options = Options(codec=codec, shard=shard, limit=limit, strict=strict, workers=workers, address=ray_address)
    with counting(console, "convert", "shards") as progress:
        summary = convert_archive(source, archive, store, options, progress, **given_options(ctx))
    console.print(conversion_summary(summary), markup=False, soft_wrap=True)
    print(summary.store)


def verify_command(
    ctx: typer.Context,
    store: Annotated[str, typer.Argument(help="Path or URL of a store.", callback=store_place)],
    archive: Annotated[
        list[Path] | None,
        typer.Option(help="Compare pixels with this archive too; repeatable for scenes.", callback=local_path),
    ] = None,
) -> None:
    """Check a store's checksums, hashes and counts; given its archive, compare every pixel too."""
    from stssl.api.progress import counting
    from stssl.archives.conversion import verify_store

    with counting(console, "verify", "patches") as progress:
        findings = verify_store(store, archive or None, progress, **given_options(ctx))
    for line in findings.lines():
        print(line)
    compared = f", {findings.compared:,} compared with the archive" if archive else ""
    console.print(f"{findings.patches:,} patches checked{compared}: {len(findings.problems)} problems")
    raise typer.Exit(1 if findings.problems else 0)


def inspect_command(
    store: Annotated[str, typer.Argument(help="Path or URL of a store.", callback=store_place)],
) -> None:
    """Describe a store: counts, splits, classes, ranges of date and place, bands, size, errors."""
    from stssl.store.description import describe_store
    from stssl.store.store import Store

    print(describe_store(Store.open(store)))
