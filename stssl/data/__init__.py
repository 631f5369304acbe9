"""Turn the patches of a store into batches of augmented images (views), in two streams: labeled and unlabeled.

`splits` divides the patches of a store into training, validation and test. `draws` chooses the training patches that
keep their label. `order` and `sampler` shuffle each stream. `loader` reads the pixels before the training step needs
them. `views` and `augment` make normalized views on the device.

Importing torch takes long. So Python imports each name below at its first use.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.data.augment import AugmentConfig, Draw, RandAugmentConfig, apply_view
    from stssl.data.draws import LabelsConfig, draw_labeled
    from stssl.data.loader import Loader, StreamSource, metadata_table, prefetch
    from stssl.data.order import Sampler, ShardOrder, make_order
    from stssl.data.sampler import ShardSampler, StreamSampler
    from stssl.data.splits import Split, SplitConfig, make_split
    from stssl.data.views import PixelScaler, RawBatch, RawRows, ViewDrawer, ViewMaker

__all__ = [
    "AugmentConfig",
    "Draw",
    "LabelsConfig",
    "Loader",
    "PixelScaler",
    "RandAugmentConfig",
    "RawBatch",
    "RawRows",
    "Sampler",
    "ShardOrder",
    "ShardSampler",
    "Split",
    "SplitConfig",
    "StreamSampler",
    "StreamSource",
    "ViewDrawer",
    "ViewMaker",
    "apply_view",
    "draw_labeled",
    "make_order",
    "make_split",
    "metadata_table",
    "prefetch",
]

_MODULES = {
    "augment": (
        "AugmentConfig",
        "Draw",
        "RandAugmentConfig",
        "apply_view",
    ),
    "draws": (
        "LabelsConfig",
        "draw_labeled",
    ),
    "loader": (
        "Loader",
        "StreamSource",
        "metadata_table",
        "prefetch",
    ),
    "order": (
        "Sampler",
        "ShardOrder",
        "make_order",
    ),
    "sampler": (
        "ShardSampler",
        "StreamSampler",
    ),
    "splits": (
        "Split",
        "SplitConfig",
        "make_split",
    ),
    "views": (
        "PixelScaler",
        "RawBatch",
        "RawRows",
        "ViewDrawer",
        "ViewMaker",
    ),
}

__getattr__ = lazy_names(__name__, _MODULES)
