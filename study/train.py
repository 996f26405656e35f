"""``python -m study.train``: one training and its scores, without Ray, by the same code that a study runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from study.command import Parser, refuse_empty, run_command
from study.config import PARAMETERS, Parameter, TrialConfig
from study.errors import StudyError

RESULT_FILE = "result.json"
#: What is trained where the command line does not say, for parameters without a default.
_CHOSEN = {"network": "tiny", "epochs": 8, "lr": 0.1}


def parser() -> argparse.ArgumentParser:
    """One option per parameter of a training, by its declaration in :mod:`study.config`."""
    parse = Parser(
        prog="python -m study.train",
        description="Train one network with L = L_C + lambda L_R and score it; the same command continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parse.add_argument
    for parameter in PARAMETERS.values():
        default = _default(parameter)
        words = parameter.help + (f": {', '.join(parameter.choices)}" if parameter.choices else "")
        if parameter.kind is bool:
            add(f"--{parameter.option}", action=argparse.BooleanOptionalAction, default=default, help=words)
        else:
            metavar = "LIST" if parameter.is_list else {int: "N", float: "X"}.get(parameter.kind)
            add(f"--{parameter.option}", type=_reader(parameter), default=_text(default), metavar=metavar, help=words)
    add("--out", default="results/train", help="folder of the checkpoint, the network and its scores")
    return parse


def _default(parameter: Parameter) -> Any:
    return _CHOSEN.get(parameter.name, parameter.new_default)


def _text(value: Any) -> str:
    """A value as an option takes it: lists with commas, ``none`` for None and for an empty list."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _reader(parameter: Parameter) -> Callable[[str], Any]:
    """The way back from :func:`_text`."""

    def read(text: str) -> Any:
        if text == "none" and (parameter.optional or parameter.is_list):
            return () if parameter.is_list else None
        return tuple(map(parameter.kind, text.split(","))) if parameter.is_list else parameter.kind(text)

    read.__name__ = parameter.kind.__name__  # argparse: "invalid float value"
    return read


def config_from(args: argparse.Namespace) -> TrialConfig:
    """Raises :class:`InputError` for a value that cannot be trained."""
    values: dict[str, dict[str, Any]] = {"": {}, "data": {}, "evaluation": {}}
    for name, parameter in PARAMETERS.items():
        values[name.rpartition(".")[0]][parameter.field] = getattr(args, parameter.option.replace("-", "_"))
    return TrialConfig.from_dict({**values.pop(""), **values})


def command_line(values: Mapping[str, Any]) -> str:
    """The command that trains with these values, by dotted name; it names those that are not its defaults."""
    words = ["python", "-m", "study.train"]
    for name, parameter in PARAMETERS.items():
        default = _text(_default(parameter))
        text = _text(values[name]) if name in values else default
        if text == default:
            continue
        if parameter.kind is bool:
            words.append(f"--{'' if values[name] else 'no-'}{parameter.option}")
        else:
            words += [f"--{parameter.option}", text]
    return shlex.join(words)


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
