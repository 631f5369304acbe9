"""Define the subcommands that use a student (a trained network): export, predict, embed.

Each subcommand imports what it needs inside its function, so that `stssl --help` stays fast.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from stssl.commands.arguments import new_result, result_path, run_place
from stssl.commands.terminal import console, say


def export_command(
    run: Annotated[str, typer.Argument(help="Path or URL of a run.", callback=run_place)],
    form: Annotated[
        str, typer.Option("--format", help="pt2, onnx, or torchvision (ResNets, without their head).")
    ] = "pt2",
    out: Annotated[
        str | None,
        typer.Option(help="Folder or URL to write; default: export in the run's folder.", callback=new_result),
    ] = None,
    bands: Annotated[str | None, typer.Option(help="Three bands for torchvision, such as B04,B03,B02.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the weights, such as CC-BY-4.0.")] = None,
) -> None:
    """Write a run's student for other programs, compare the file with the student, and write a model card."""
    from stssl.exports.writing import export_to

    chosen = None if bands is None else [band.strip() for band in bands.split(",")]
    print(export_to(run, form, out, bands=chosen, license=license))


Windows = Annotated[int | None, typer.Option(help="Distance of a scene's windows in pixels.")]

Bands = Annotated[str, typer.Option(help="Names of the files' bands, as B02,B03,...")]

Resample = Annotated[bool, typer.Option("--resample", help="Accept another pixel size or patch size.")]

AtATime = Annotated[int, typer.Option(min=1, help="Windows or patches that a model sees at a time.")]

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="GeoTIFFs of a scene, a .SAFE folder, a store, a table, folder or pattern of images."
    ),
]


def predict_command(
    model: Annotated[str, typer.Argument(help="Path or URL of a run or of a student's file.", callback=run_place)],
    inputs: Inputs,
    out: Annotated[
        str, typer.Option(help="Map (.tif) or table (.parquet) to write: a path or URL.", callback=new_result)
    ],
    also: Annotated[
        list[str] | None,
        typer.Option("--model", help="Further model of an ensemble; repeatable.", callback=run_place),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Label set to score a table against; default: found.")] = None,
    stride: Windows = None,
    bands: Bands = "",
    probabilities: Annotated[
        Literal["uint8", "float32"] | None, typer.Option(help="Write maps of each class's probability, as this type.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Write a PNG beside the map too.")] = False,
    resample: Resample = False,
    pixel_size: Annotated[
        float | None, typer.Option(min=0.01, help="Meters a pixel of the training images, if the student has no size.")
    ] = None,
    batch: AtATime = 64,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Ray tasks at the same time; 0: this process.")] = 0,
    ray_address: Annotated[str | None, typer.Option(help="Cluster to predict on.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a Ray task, such as 0.25.")] = 0.0,
) -> None:
    """Map a scene, or write a table of patches, by a trained student; the same command resumes a map."""
    from stssl.api.progress import counting, score_table
    from stssl.mapping.prediction import MapOptions
    from stssl.predictions.choice import predict_inputs, unit_of

    options = MapOptions(stride, _named(bands), resample, pixel_size, probabilities, preview, batch, device)
    options = replace(options, workers=workers, address=ray_address, gpus=gpus)
    with counting(console, "predict", unit_of(inputs, out)) as progress:
        found = predict_inputs([model, *(also or ())], inputs, out, options, labels=labels, progress=progress)
    for line in found.lines:
        say(line)
    if found.scores:
        console.print(score_table({"student": found.scores}, "patches with a label"))
    print(found.place)


def embed_command(
    model: Annotated[
        str, typer.Argument(help="Path or URL of a run, a student or a pretrained encoder.", callback=run_place)
    ],
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Table (.parquet) or Zarr group (.zarr) to write.", callback=result_path)],
    stride: Windows = None,
    bands: Bands = "",
    resample: Resample = False,
    batch: AtATime = 64,
    device: Device = "auto",
) -> None:
    """Write the features of patches: what the last layer of a student or pretrained encoder sees."""
    from stssl.api.progress import counting
    from stssl.predictions.embedding import embed_patches
    from stssl.predictions.predicted_table import PatchOptions

    options = PatchOptions(_named(bands), None, resample, stride, batch, device)
    with counting(console, "embed", "patches") as progress:
        found = embed_patches(model, inputs, out, options, progress)
    for line in found.notes:
        say(line)
    console.print(
        f"{found.patches:,} patches, {found.width} features, {found.failed:,} patches without usable features"
    )
    print(found.path)


def _named(bands: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in bands.split(",") if name.strip())
