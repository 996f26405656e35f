"""``python -m study.evaluate NETWORK [OTHER]``: the faithfulness table of a network, or of two, paired by image.

NETWORK is a folder that ``study.train``, a study or ``analysis.export`` wrote, or a trial of a study as STUDY/TRIAL.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.command import Parser, refuse_empty, run_command
from study.config import EvaluationConfig
from study.errors import InputError
from study.metrics import METHODS, PROTOCOLS
from study.storage.storage import DEFAULT_STORAGE

if TYPE_CHECKING:
    from study.data.labelled import LabelledImages
    from study.evaluation.networks import NamedNetwork
    from study.faithfulness import FaithfulnessReport

DEFAULT_METHODS = "grad_cam,grad_cam_plus_plus,xgrad_cam,layer_cam,ablation_cam"
_SANITY_IMAGES = 32
_TIMED_IMAGES = 8  # whose maps are timed


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m study.evaluate",
        description="Score how faithful a network's saliency maps are; of two networks, the paired difference.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parse.add_argument
    add("networks", nargs="+", metavar="NETWORK", help="folder of a trained network, or STUDY/TRIAL; two are compared")
    add("--data", default=None, help="where its images are on this machine (None: where they were in training)")
    add("--split", default="val", help="val or test; looking at test is noted, choose nothing by it")
    add("--methods", default=DEFAULT_METHODS, help=f"saliency methods, or all: {', '.join(METHODS)}")
    add("--protocol", default="paper", help=f"faithfulness protocol: {', '.join(PROTOCOLS)}")
    add("--images", type=int, default=500, help="score the first so many images of the split")
    add("--masking-images", type=int, default=None, help="mask only the first so many of them, which takes most time")
    add("--gallery", default="0,1,2,3,4,5", help="images to draw, by number in the split; '' draws none")
    add("--compare-smoothgrad", action="store_true", help="what denoising at inference costs and gains beside it")
    add("--sanity", action="store_true", help="the cascading model-parameter randomisation check")
    add("--storage", default=DEFAULT_STORAGE, help="where results of studies live")
    add("--tracking-uri", default=None, help="MLflow server or store (None: mlflow.db in the results folder)")
    add("--out", default="results/evaluate", help="folder of table, per-image scores and gallery")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args, allowed=("gallery",))
    methods = tuple(METHODS) if args.methods == "all" else tuple(args.methods.split(","))
    if args.compare_smoothgrad:
        methods = (*methods, *(m for m in ("input_gradient", "smoothgrad") if m not in methods))
    config = EvaluationConfig(
        methods=methods, protocol=args.protocol, images=args.images, masking_images=args.masking_images, batch_size=64
    )
    if args.split not in ("val", "test"):
        raise InputError(f"--split: unknown value {args.split!r}; choose val or test")
    if len(set(args.networks)) < len(args.networks) <= 2:
        raise InputError(f"{args.networks[0]} is given twice; a network is compared with another one")
    if len(args.networks) > 2:
        raise InputError(f"{len(args.networks)} networks are given; one is scored, two are compared")
    gallery = _numbers("--gallery", args.gallery)
    from study.storage.storage import Storage

    out = Path(args.out)
    Storage.parse(args.out).check_writable()
    from study.data.labelled import LabelledImages
    from study.evaluation.networks import Networks, shared_images
    from study.evaluation.results import score, write
    from study.faithfulness.gallery import draw_networks

    opener = Networks(args.storage, args.tracking_uri)
    networks, dataset, reserved = shared_images(opener.open(args.networks), args.data)
    if args.split == "val":
        split, n = dataset.validation, len(dataset.scored(args.images, reserved).labels)
    else:
        split, n = opener.test_split(dataset, networks), args.images
    if gallery and max(gallery) >= len(split.labels):
        raise InputError(f"--gallery {args.gallery}: the split has images 0 to {len(split.labels) - 1}")
    images = LabelledImages.of(dataset, split, with_masks=True)
    others = networks[::-1] if len(networks) == 2 else [None]
    reports = [score(network, other, images[:n], config) for network, other in zip(networks, others, strict=True)]
    out.mkdir(parents=True, exist_ok=True)
    lines = _table(args, networks, reports, images, methods)
    (out / "table.txt").write_text("\n".join(lines) + "\n")
    write(out, args.split, networks, reports)
    if gallery:
        by_title = {network.title: network.network for network in networks}
        draw_networks(out / "gallery.png", by_title, images[gallery], dataset.classes, methods)
    print("\n".join(lines))
    print(f"results  {out}", file=sys.stderr)
    print(f"next     look at {out / 'gallery.png' if gallery else out / 'table.txt'}", file=sys.stderr)
    return 0


def _table(
    args: argparse.Namespace,
    networks: Sequence[NamedNetwork],
    reports: Sequence[FaithfulnessReport],
    images: LabelledImages,
    methods: Sequence[str],
) -> list[str]:
    """The lines that are printed: scores of each network, then what the options ask for."""
    from study.evaluation.results import milliseconds_per_image
    from study.faithfulness import table
    from study.faithfulness.randomization import randomization_check

    first = reports[0]
    masked = f"{first.masking_images} of them masked, " if first.masking_images < first.images else ""
    lines = [
        f"{args.split} split, {first.images} images, {masked}protocol {first.protocol}, "
        "95 % bootstrap intervals over images",
        table.LEGEND,
    ]
    for network, report in zip(networks, reports, strict=True):
        cost = milliseconds_per_image(network.network, images[:_TIMED_IMAGES], methods)
        lines += ["", *table.scores(network.title, report, cost)]
    if args.compare_smoothgrad:
        lines += ["", *table.smoothgrad(networks[0].title, first)]
    if len(reports) == 2:
        lines += ["", *table.differences(networks[0].title, networks[1].title, *reports)]
    if args.sanity:
        few = images[:_SANITY_IMAGES]
        for network in networks:
            found = randomization_check(network.network, few, methods)
            lines += ["", *table.randomization(network.title, *found, len(few))]
    return lines


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{option} {text!r}: not a list of numbers, such as 0,1,2") from None
    if any(number < 0 for number in numbers):
        raise InputError(f"{option} {text!r}: images are numbered from 0")
    return numbers


if __name__ == "__main__":
    sys.exit(run_command(main))
