"""``python -m study.train``: one training and its scores, without Ray, by the same code that a study runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from study.command import Parser, refuse_empty, run_command
from study.config import (
    AMP_MODES,
    CROP_MODES,
    ENGINES,
    INITIALIZATIONS,
    LABELS,
    NETWORKS,
    REG_ERRORS,
    REG_GRADIENT,
    REG_GRADIENTS,
    SCHEDULES,
    DataConfig,
    EvaluationConfig,
    TrialConfig,
)
from study.errors import StudyError
from study.metrics import METHODS, PROTOCOLS

RESULT_FILE = "result.json"


def parser() -> argparse.ArgumentParser:
    defaults = {f.name: f.default for f in dataclasses.fields(TrialConfig)}
    parse = Parser(
        prog="python -m study.train",
        description="Train one network with L = L_C + lambda L_R and score it; the same command continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parse.add_argument
    add("--network", default="tiny", help=f"one of {', '.join(NETWORKS)}")
    add("--reg-weight", type=float, default=0.0, help="lambda, the weight of the regularizer; 0 is plain training")
    add("--reg-error", default="cosine", help=f"error function: {', '.join(REG_ERRORS)}")
    add(
        "--reg-gradient",
        default=REG_GRADIENT,
        help=f"input gradient that is regularized, by what batch-norm is in it: {', '.join(REG_GRADIENTS)}",
    )
    add(
        "--reg-interval", type=int, default=1, help="regularize every so many steps, with lambda as many times as large"
    )
    add("--reg-warmup-epochs", type=float, default=0.0, help="epochs over which lambda rises linearly to its value")
    add("--epochs", type=int, default=8, help="passes over the training images")
    add("--lr", type=float, default=0.1, help="peak learning rate (SGD with Nesterov momentum)")
    add("--batch-size", type=int, default=defaults["batch_size"], help="images per step")
    add("--accumulate", type=int, default=1, help="parts in which a step's images are worked on, to save memory")
    add("--weight-decay", type=float, default=defaults["weight_decay"], help="L2 penalty")
    add("--norm-lr-multiple", type=float, default=1.0, help="rate of batch-norm's scale and shift, as a multiple")
    add("--initialization", default="default", help=f"of convolutions: {', '.join(INITIALIZATIONS)} (the identity)")
    add("--label-smoothing", type=float, default=0.0, help="smoothing of the targets in L_C")
    add("--schedule", default="cosine", help=f"learning rate after warm-up: {', '.join(SCHEDULES)}")
    add("--warmup-epochs", type=float, default=defaults["warmup_epochs"], help="epochs of linear warm-up")
    add("--crop-padding", type=int, default=defaults["crop_padding"], help="augmentation: pixels around a random crop")
    add("--crop-mode", default="zero", help=f"what lies in the padding: {', '.join(CROP_MODES)}")
    add("--rotation", type=float, default=0.0, help="augmentation: rotation up to so many degrees")
    add("--amp", default="auto", help=f"mixed precision: {', '.join(AMP_MODES)} (auto: bf16 on a GPU, else none)")
    add("--engine", default="auto", help=f"how kernels reach the device: {', '.join(ENGINES)} (auto: graph on a GPU)")
    add("--seed", type=int, default=0, help="of the initial weights, the order and the augmentation")
    add("--data", default="shapes", help="shapes (embedded), cifar100 (download), or a folder of Parquet/archive files")
    add("--labels", default="fine", help=f"{' or '.join(LABELS)} (coarse: CIFAR-100's 20 superclasses)")
    add("--train-images", type=int, default=None, help="use only so many training images")
    add("--validation-images", type=int, default=None, help="use only so many validation images")
    add("--evaluation-images", type=int, default=500, help="validation images on which faithfulness is measured")
    add(
        "--masking-images",
        type=int,
        default=None,
        help="of these, images on which scores that mask images are measured",
    )
    add("--methods", default="grad_cam,grad_cam_plus_plus", help=f"saliency methods: {', '.join(METHODS)}")
    add("--protocol", default="paper", help=f"faithfulness protocol: {', '.join(PROTOCOLS)}")
    add("--out", default="results/train", help="folder of the checkpoint, the network and its scores")
    return parse


def config_from(args: argparse.Namespace) -> TrialConfig:
    """Raises :class:`InputError` for a value that cannot be trained."""
    return TrialConfig(
        network=args.network,
        epochs=args.epochs,
        lr=args.lr,
        reg_weight=args.reg_weight,
        reg_error=args.reg_error,
        reg_gradient=args.reg_gradient,
        reg_interval=args.reg_interval,
        reg_warmup_epochs=args.reg_warmup_epochs,
        batch_size=args.batch_size,
        accumulate=args.accumulate,
        weight_decay=args.weight_decay,
        norm_lr_multiple=args.norm_lr_multiple,
        initialization=args.initialization,
        label_smoothing=args.label_smoothing,
        schedule=args.schedule,
        warmup_epochs=args.warmup_epochs,
        crop_padding=args.crop_padding,
        crop_mode=args.crop_mode,
        rotation=args.rotation,
        amp=args.amp,
        engine=args.engine,
        seed=args.seed,
        data=DataConfig(
            source=args.data,
            labels=args.labels,
            train_images=args.train_images,
            validation_images=args.validation_images,
        ),
        evaluation=EvaluationConfig(
            methods=tuple(args.methods.split(",")),
            protocol=args.protocol,
            images=args.evaluation_images,
            masking_images=args.masking_images,
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    config = config_from(args)
    out = Path(args.out)
    from study.storage.storage import Storage

    Storage.parse(args.out).check_writable()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from study import metrics
    from study.trial.trial import Trial

    console = Console(stderr=True)
    trial = Trial(config, out)
    if trial.epoch:
        console.print(f"continuing after epoch {trial.epoch} of {config.epochs} in {out}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.fields[at]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            f"{config.network} λ {config.reg_weight:g}",
            total=float(config.epochs),
            completed=trial.epoch,
            at=f"{trial.epoch}/{config.epochs}",
        )
        while not trial.finished:
            epoch = trial.epoch
            report = trial.step(lambda done, of, epoch=epoch: progress.update(task, completed=epoch + done / of))  # type: ignore[misc]
            progress.update(task, completed=float(trial.epoch), at=f"{trial.epoch}/{config.epochs}")
            if metrics.ACCURACY.ledger_name in report:
                regularization = report.get(metrics.TRAIN_REGULARIZATION)
                console.print(
                    f"epoch {int(report['epoch'])}/{config.epochs}  loss {report[metrics.TRAIN_LOSS]:.3f}"
                    + (f"  L_R {regularization:.3f}" if regularization is not None else "")
                    + f"  accuracy {report[metrics.ACCURACY.ledger_name]:.1f} %  {report[metrics.EPOCH_SECONDS]:.1f} s"
                )
    if trial.reason:
        raise StudyError(f"training ended: {trial.reason}; try a smaller --lr or --reg-weight")
    trial.export(out)
    scores = trial.history[-1]
    result = {"config": config.to_dict(), "scores": scores, "protocol": trial.card()["protocol"]}
    (out / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"accuracy {scores[metrics.ACCURACY.ledger_name]:.2f} %  "
        f"faithfulness {scores[metrics.FAITHFULNESS.ledger_name]:+.2f} {metrics.FAITHFULNESS.unit} "
        f"({result['protocol']}, temperature {scores[metrics.TEMPERATURE]:.3g})  "
        f"alignment {scores[metrics.ALIGNMENT.ledger_name]:.3f}"
    )
    print(f"results  {out}\nnext     python -m study.run search_spaces/quick.yaml", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
