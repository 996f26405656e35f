"""``python -m analysis.export STUDY --out DIR``: the front's networks as folders, proven to be what was measured."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.export.folder import check_replaceable, replace_folder, staged
from analysis.export.formats import FILES, FORMATS, ONNX, SAFETENSORS, parse_formats
from analysis.export.manifest import MANIFEST_FILE, sha256_of, to_json, write_manifest
from analysis.export.picks import ALL, check_model_name, check_pick, pick_rows, roles
from study import metrics, names
from study.command import Parser, expanded, refuse_empty
from study.errors import InputError
from study.ledger.tracking import masked

if TYPE_CHECKING:
    from analysis.export.fetch import Proven
    from analysis.table import StudyTable
    from study.ledger import Ledger
    from study.storage.storage import Storage

_SPARE_BYTES = 16 * 2**20  # cards, graphs, and a margin
_STACK = ("torch", "onnx", "onnxruntime", "safetensors", "numpy")


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments

    parse = Parser(
        prog="python -m analysis.export",
        description="Write Pareto-optimal networks of a study to a folder: weights, torch.export program, ONNX, each "
        "loaded again and compared; a model card; final scores on the test split (every look at which is noted).",
    )
    add_study_arguments(parse)
    parse.add_argument("--out", required=True, metavar="DIR", help="folder to make, or to replace as a whole")
    parse.add_argument(
        "--pick", default=ALL, metavar="WHICH", help="all (of the front), knee, best:accuracy or best:faithfulness"
    )
    parse.add_argument(
        "--include-infeasible",
        action="store_true",
        help="also trials that the study's constraints, or undefined maps, keep off its front; their cards say so",
    )
    parse.add_argument(
        "--formats", default=",".join(FORMATS), metavar="LIST", help=f"of {', '.join(FORMATS)} (default: all)"
    )
    parse.add_argument(
        "--register", metavar="NAME", help="also make them versions of this model in MLflow's registry, with aliases"
    )
    parse.add_argument("--data", metavar="SRC", help="where the study's images are on this machine (default: as then)")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    formats = parse_formats(args.formats)
    check_pick(args.pick)
    if args.register is not None:
        check_model_name(args.register)
        if ONNX not in formats:
            raise InputError(f"--formats {args.formats}: a registered model is loaded from its ONNX file; add onnx")
    out = expanded(args.out, "--out").resolve()
    check_replaceable(out, args.study)
    from analysis.load import ledger_from, load_study

    ledger, storage = ledger_from(args)
    study = load_study(ledger)
    rows = pick_rows(study, args.pick, include_infeasible=args.include_infeasible)
    if args.register is not None:
        from analysis.export.register import check_registry

        check_registry(ledger, args.register)
    with staged(out, _space(study, rows, formats)) as part:
        manifest = _write(args, argv, formats, ledger, storage, study, rows, part)
        check_replaceable(out, args.study)  # nobody put anything there meanwhile
        replace_folder(part, out)
    _report(manifest, out)
    if args.register is not None:
        from analysis.export.register import register_networks

        for line in register_networks(ledger, args.register, out, manifest):
            print(f"model    {line}", file=sys.stderr)
    return 0


def _write(
    args: argparse.Namespace,
    argv: Sequence[str] | None,
    formats: tuple[str, ...],
    ledger: Ledger,
    storage: Storage,
    study: StudyTable,
    rows: Sequence[int],
    part: Path,
) -> dict[str, Any]:
    """Fill ``part``; the manifest. Everything that can be refused is, before the test split is opened."""
    from analysis.export.card import README_FILE, model_card, overview
    from analysis.export.fetch import fetch_networks
    from analysis.export.formats import write_formats
    from analysis.export.parity import check_parity
    from analysis.export.score import open_and_score, temperature_of

    proven = fetch_networks(ledger, study, rows, part, args.data)
    for network in proven:
        network.dataset.test_fingerprint  # noqa: B018, refused here where there is no test split
        print(f"{network.folder.name}: writing {', '.join(formats)}", file=sys.stderr)
        write_formats(network.network, network.card, network.folder, formats)
    parity = check_parity(proven, formats)
    record = ledger.record()
    about = {
        "study": args.study,
        "fingerprint": record.fingerprint,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(["python", "-m", "analysis.export", *(sys.argv[1:] if argv is None else argv)]),
        "study_command": _study_command(storage, args.study),
        "code_version": record.tags.get(names.TAG_CODE_VERSION, ""),
        "pick": args.pick,
        "formats": list(formats),
        "objectives": {m.name: m.direction for m in study.objectives},
        "versions": {package: metadata.version(package) for package in _STACK},
    }
    entries = [
        {**_entry(study, p, found), "temperature": temperature_of(p)} for p, found in zip(proven, parity, strict=True)
    ]
    for network, entry in zip(proven, entries, strict=True):
        entry["test_scores"] = open_and_score(ledger, storage, study, network, entry["temperature"])
        added = {
            name: entry[name]
            for name in ("trial", "run_id", "roles", "temperature", "test_scores", "max_logit_difference")
        }
        card = {**network.card, "study": study.name, **added}
        (network.folder / names.MODEL_CONFIG_FILE).write_text(to_json(card))
        (network.folder / README_FILE).write_text(model_card(entry, card, about))
    about["networks"] = entries
    (part / README_FILE).write_text(overview(about))
    return write_manifest(part, about)


def _space(study: StudyTable, rows: Sequence[int], formats: Sequence[str]) -> int:
    """Bytes that the folder will take, roughly: float32 weights in every file, the downloaded ones among them."""
    weights = study.numbers(metrics.PARAMETERS.ledger_name)[list(rows)]
    files = len({SAFETENSORS, *formats})
    return _SPARE_BYTES + int(1.2 * 4 * files * sum(n for n in weights.tolist() if n == n))


def _entry(study: StudyTable, proven: Proven, parity: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of a network before its test scores."""
    from analysis.statistics.front import eligible, front_mask

    row = proven.row
    return {
        "folder": proven.folder.name,
        "trial": study.column("trial")[row],
        "seed": study.column("seed")[row],
        "run_id": study.column("run_id")[row],
        "network": proven.config.network,
        "reg_weight": proven.config.reg_weight,
        "n_classes": proven.card["n_classes"],
        "on_front": bool(front_mask(study, eligible(study))[row]),
        "not_eligible": study.why_not()[row],
        "roles": roles(study).get(row, []),
        "weights_sha256": proven.card["sha256"],
        "validation_scores": {m.name: study.column(m.name)[row] for m in study.objectives},
        "validation_images": len(proven.dataset.validation.labels),
        "max_logit_difference": proven.max_logit_difference,
        "parity": dict(parity),
    }


def command_line(parts: Sequence[str]) -> str:
    """A command as it may be shown to whoever gets the export: without the password that a URI in it may hold."""
    return masked(shlex.join(parts))


def _study_command(storage: Storage, study: str) -> str | None:
    """How the study was started, where its folder is on this machine."""
    try:
        command = json.loads((storage.local / study / names.STUDY_FILE).read_text())["command"]
        return command_line(command)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _report(manifest: Mapping[str, Any], out: Path) -> None:
    """Scores on stdout; on stderr where things are and what to type next."""
    for entry in manifest["networks"]:
        test = entry["test_scores"]
        low, high = test["accuracy_interval"]
        f_low, f_high = test["faithfulness_interval"]
        differences = {k: v["max_logit_difference"] for k, v in entry["parity"].items() if k != "images"}
        places = entry["roles"] or (["not eligible: " + entry["not_eligible"]] if entry["not_eligible"] else [])
        place = f" ({', '.join(places)})" if places else ""
        print(
            f"{entry['folder']}{place}  test accuracy {test['accuracy']:.2f} % [{low:.2f}, {high:.2f}]  test "
            f"faithfulness {test['faithfulness']:+.2f} {metrics.FAITHFULNESS.unit} [{f_low:+.2f}, {f_high:+.2f}] "
            f"({test['protocol']}, {test['faithfulness_images']} images, temperature {entry['temperature']:.3g})  "
            "max |Δ logit| " + "  ".join(f"{kind} {value:.1e}" for kind, value in differences.items())
        )
    print(f"results  {out}  manifest SHA-256 {sha256_of(out / MANIFEST_FILE)}", file=sys.stderr)
    first = out / manifest["networks"][0]["folder"]
    if SAFETENSORS in manifest["formats"]:
        code = "from study.training.checkpoint import load_model; "
        code += f"network, card = load_model(Path({str(first)!r})); print(card['test_scores'])"
        code = f"from pathlib import Path; {code}"
    elif ONNX in manifest["formats"]:
        code = f"import onnxruntime; session = onnxruntime.InferenceSession({str(first / FILES[ONNX])!r})"
    else:
        code = f"import torch; network = torch.export.load({str(first / FILES[manifest['formats'][0]])!r}).module()"
    print(f'next     python -c "{code}"', file=sys.stderr)
