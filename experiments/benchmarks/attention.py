"""Compare a ViT's step in bf16 on the CPU with attention in bf16 and in fp32, one after the other in each repeat.

    python experiments/benchmarks/attention.py --threads 1 --repeats 7 --json attention.json

The ratio is that of two steps of the same repeat, so that a busy machine slows down both.
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from stssl.models.backbones import make_backbone
from stssl.training.precision import Fp32Attention


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = make_backbone(options.backbone, {}, size=options.size, in_channels=3, classes=10, hub=False)
    images = torch.randn(options.rows, 3, options.size, options.size)

    def step(wide: bool, autocast: bool = True) -> float:
        before = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Fp32Attention() if wide else nullcontext():
            loss = network(images).float().logsumexp(1).sum()
        loss.backward()
        network.zero_grad()
        return time.perf_counter() - before

    for wide in (False, True):
        step(wide)
    rows = [(step(False), step(True), step(False, autocast=False)) for _ in range(options.repeats)]
    narrow, wide_times, full = (list(column) for column in zip(*rows, strict=True))
    ratios = [after / before for before, after, _ in rows]
    print("| step | s | to bf16 attention |\n| --- | --- | --- |")
    print(f"| bf16, attention in bf16 | {statistics.median(narrow):.3f} | 1 |")
    print(
        f"| bf16, attention in fp32 | {statistics.median(wide_times):.3f} | {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}) |"
    )
    whole = statistics.median(other / before for before, _, other in rows)
    print(f"| fp32 | {statistics.median(full):.3f} | {whole:.3f} |")
    if options.json:
        options.json.write_text(json.dumps({"bf16": narrow, "attention in fp32": wide_times, "fp32": full}))


if __name__ == "__main__":
    main()
