"""Write the model card of an exported student as Markdown: use, scores, data, training places, limits."""

from collections.abc import Iterator

from stssl.exports.facts import CONFIG, ITEM, MAP, SCORED_PARTS, Exported
from stssl.students.description import ModelDescription
from stssl.training.run_files import NetworkScores, Score

MOST_SCORES = 12
SEGMENTED = ("resnet50", "resnet101")
"""Networks for which torchvision has DeepLabV3. The smaller ones have no dilated layers."""


def model_card(facts: Exported, *, has_item: bool) -> str:
    """Return the Markdown text of a model card for an exported student.

    Args:
        facts: What the card states about the student and its files.
        has_item: True if a STAC item lies beside the card.
    """
    return "\n".join(
        [
            *_front_matter(facts),
            f"# {facts.name}",
            "",
            _purpose(facts.description),
            "",
            *_files(facts, has_item),
            *_use(facts),
            *_bands(facts.description),
            *_scores(facts),
            *_classes(facts),
            *_data(facts.description),
            *_limits(facts),
            "",
        ]
    )


def _front_matter(facts: Exported) -> Iterator[str]:
    yield from ("---", f"license: {(facts.license or 'other').lower()}", "tags: [remote-sensing, land-cover, stssl]")
    yield from ("pipeline_tag: image-classification", "---", "")


def _purpose(told: ModelDescription) -> str:
    if told.task == "features":
        return f"A {told.network.backbone}, pretrained without labels on satellite patches of {told.training.source}."
    kind = "any number of" if told.multilabel else "one of"
    text = f"A {told.network.backbone} that gives a satellite patch {kind} {len(told.classes)} land-cover classes."
    ground = f", {told.image.meters:g} m on the ground" if told.image.meters else ""
    return f"{text} A patch has {told.image.side} x {told.image.side} pixels{ground}."


def _files(facts: Exported, has_item: bool) -> Iterator[str]:
    yield from ("## Files", "", "| file | contents | SHA-256 |", "| --- | --- | --- |")
    for name, digest in facts.files.items():
        difference = facts.difference.get(name)
        checked = "" if difference is None else f"; its logits differ from the student's by at most {difference:.1e}"
        yield f"| `{name}` | the model{checked} | `{digest[:16]}...` |"
    yield f"| `{CONFIG}` | bands, classes, colors, inputs, full description | |"
    if has_item:
        yield f"| `{ITEM}` | STAC item (MLM extension) | |"
    yield ""


def _use(facts: Exported) -> Iterator[str]:
    """Yield the lines of the card's section "Use", with an example for each model file of the export."""
    told = facts.description
    yield from ("## Use", "")
    graphs = [name for name in facts.files if name.endswith((".pt2", ".onnx"))]
    if graphs:
        yield from _graph_use(told, graphs)
    if "backbone.safetensors" in facts.files:
        yield from _torchvision_use(told, facts.backbone_bands)


def _graph_use(told: ModelDescription, files: list[str]) -> Iterator[str]:
    yield f"{_code_list(files)}: feed stored values, {told.image.bits}-bit numbers as float32, unscaled."
    last = ", scaling and the correction of CDMAD" if told.cdmad else ", and scaling"
    yield f"Resizing, clipping{last} happen inside the model. It gives logits."
    yield "Bands of lower resolution must be resampled to one grid before (bilinear)."
    if told.network.role == "direct":
        yield "The second input, `metadata`, has latitude, longitude, day of the year and UTC hour; NaN where unknown."
    yield ""
    if any(name.endswith(".pt2") for name in files):
        yield from ("```python", "import torch", "", 'model = torch.export.load("student.pt2").module()')
        given = "images, metadata" if told.network.role == "direct" else "images"
        yield from (f"logits = model({given})  # images: float32 [n, bands, height, width]", "```", "")
    if any(name.endswith(".onnx") for name in files):
        yield from ("```python", "import onnxruntime", "", 'session = onnxruntime.InferenceSession("student.onnx")')
        given = '"images": images, "metadata": metadata' if told.network.role == "direct" else '"images": images'
        yield from (f"logits = session.run(None, {{{given}}})[0]", "```", "")


def _code_list(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _torchvision_use(told: ModelDescription, bands: tuple[str, ...]) -> Iterator[str]:
    name = told.network.backbone.partition(".")[0]
    yield f"`backbone.safetensors` holds the convolutional layers of a {name} under torchvision's names."
    if bands:
        names = ", ".join(map(_cell, bands))
        yield f"Its images have the bands {names}, in this sequence (`backbone_bands` in `{CONFIG}`)."
    yield "For detection:"
    yield from ("", "```python", "from safetensors.torch import load_file")
    yield "from torchvision.models.detection import FasterRCNN"
    yield from ("from torchvision.models.detection.backbone_utils import resnet_fpn_backbone", "")
    yield f'backbone = resnet_fpn_backbone(backbone_name="{name}", weights=None, trainable_layers=5)'
    yield 'backbone.body.load_state_dict(load_file("backbone.safetensors"))'
    yield from ("model = FasterRCNN(backbone, num_classes=2)  # the background counts as a class", "```", "")
    if name in SEGMENTED:
        yield from ("For segmentation:", "", "```python", "from safetensors.torch import load_file")
        yield from (f"from torchvision.models.segmentation import deeplabv3_{name}", "")
        yield f"model = deeplabv3_{name}(weights=None, weights_backbone=None, num_classes=2)"
        yield from ('model.backbone.load_state_dict(load_file("backbone.safetensors"))', "```", "")
    yield f"The layers learned from scaled values (see below). `{CONFIG}` has the `mean` and `std` of each band."
    yield from ("Give them to `FasterRCNN` as `image_mean` and `image_std`, or scale the images yourself.", "")


def _bands(told: ModelDescription) -> Iterator[str]:
    yield from ("## Bands", "", "A stored value x enters the network as (clip(x, low, high) - mean) / std.", "")
    yield from (
        "| band | type | low | high | mean | std | training values |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    for band in told.bands:
        numbers = " | ".join(_number(value) for value in (band.low, band.high, band.mean, band.std))
        known = "" if band.smallest is None else f"{_number(band.smallest)} to {_number(band.largest)}"
        yield f"| {_cell(band.name)} | {band.dtype} | {numbers} | {known} |"
    yield ""


def _scores(facts: Exported) -> Iterator[str]:
    if facts.description.task == "features":
        return
    yield from ("## Scores", "")
    if not facts.scores:
        yield from ("The student was not evaluated. Run `stssl evaluate RUN`, and export it again.", "")
        return
    parts = [part for part in SCORED_PARTS if part in facts.scores]
    yield f"| score | {' | '.join(parts)} |"
    yield f"| --- |{' --- |' * len(parts)}"
    for name in list(facts.scores[parts[0]].scores)[:MOST_SCORES]:
        yield f"| {name} | {' | '.join(_number(facts.scores[part].scores.get(name)) for part in parts)} |"
    if "test" not in parts:
        yield from (
            "",
            "The test part was not evaluated: the validation part chose the weights, so its scores are too good.",
        )
    yield ""


def _classes(facts: Exported) -> Iterator[str]:
    told = facts.description
    if not told.classes:
        return
    part = next((part for part in reversed(SCORED_PARTS) if part in facts.scores), None)
    scored = facts.scores[part] if part else None
    yield from ("## Classes", "")
    head = ("number", "class", "color", *((f"patches ({part})", _class_score(scored)) if scored else ()))
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for number, one in enumerate(told.classes):
        row = [str(number), _cell(one.name), f"`{one.color}`"]
        if scored:
            found = scored.per_class.get(one.name, {})
            row += [_number(found.get("count")), _number(found.get(_class_score(scored)))]
        yield f"| {' | '.join(row)} |"
    yield ""


def _class_score(scored: NetworkScores) -> str:
    return "AP" if scored.multilabel else "recall"


def _data(told: ModelDescription) -> Iterator[str]:
    training, box = told.training, told.training.box
    yield from ("## Training data", "")
    labeled = "" if training.labeled is None else f", {training.labeled:,} of them with a label"
    yield f"- Source: {_cell(training.source)}. {training.patches:,} training patches{labeled}."
    if box:
        east = f"{box.west:.2f} to {box.east:.2f} degrees east"
        yield f"- Places: {box.south:.2f} to {box.north:.2f} degrees north, {east}."
    if training.months:
        yield f"- Months: {', '.join(training.months)}."
    yield f"- License of the data: {training.data_license or 'unknown'}."
    yield f"- Hashes: recipe `{training.hashes['recipe']}`, data `{training.hashes['data']}`."
    yield f"- Software: {', '.join(f'{name} {version}' for name, version in training.versions.items())}."
    yield from ("", f"![Places of the training patches]({MAP})" if box else "The training patches have no places.", "")


def _limits(facts: Exported) -> Iterator[str]:
    told = facts.description
    yield from ("## Limits", "")
    where = "the box above" if told.training.box else "unknown places"
    when = "the months above" if told.training.months else "unknown dates"
    yield f"- It was trained on patches from {where} and {when}. Elsewhere and at other times, its scores are unknown."
    kind = "display-stretched 8-bit images" if told.image.bits == 8 else "16-bit values of the source named above"
    yield f"- It takes {kind}. Other sensors, processing levels or stretches change the meaning of the numbers."
    if told.image.meters:
        yield f"- It takes patches of {told.image.meters:g} m. It does not know patches of another size on the ground."
    if told.task == "single-label":
        yield "- It gives each patch one class of its list, also a patch that shows several classes or none."
    if told.classes:
        yield "- Its probabilities are not calibrated: a probability of 0.9 does not mean 90 % correct."
    chosen = facts.license or "nobody has chosen one yet; ask the author before you use them"
    yield f"- License of these weights: {chosen}."


def _number(value: Score | float) -> str:
    return "" if value is None else f"{value:.4g}"


def _cell(text: str) -> str:
    """Return a text escaped for a cell of a Markdown table, so that it can neither end the cell nor start HTML."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
