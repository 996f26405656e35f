"""The model card: what was trained on what, what was measured how, what it cannot promise, how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.export.formats import FILES, ONNX, SAFETENSORS, TORCH_EXPORT
from study import metrics, names
from study.faithfulness.statistics import LEVEL, wilson

README_FILE = "README.md"

_ROLE_TEXTS = {
    "knee": "the knee of its front (nearest to the ideal point, objectives scaled by their range on the front)",
    "best-accuracy": "the most accurate configuration of the study on validation images",
    "best-faithfulness": "the configuration with the most faithful saliency of the study on validation images",
}

_NOT_ELIGIBLE = (
    "**Not eligible for the front of its study: {reason}.** It was exported because `--include-infeasible` asked for "
    "such networks too; by the study's own terms it is not one to use."
)

_LIMITS = """\
- **A saliency map is not a proof.** Faithfulness scores how the network's answer changes when parts of an image are
  taken away as the map says; such images are unlike anything that the network was trained on. A high score does not say
  that the network uses what a person would use, nor that the map shows why a single decision was made.
- **Faithful is not right.** Maps of a network that has learned nothing may be faithful to it. Read faithfulness beside
  accuracy.
- **Scores hold under the protocol named above and for the methods listed**, at the temperature named there. Do not
  compare them with scores under another protocol.
- **Guided backpropagation, toward which λ > 0 trains, is partly image recovery** (Nie et al. 2018) and passes some
  sanity checks that it should fail (Adebayo et al. 2018). `python -m study.evaluate DIR --sanity` runs the
  model-parameter randomisation check on this network.
- **Intervals cover which images were drawn**, not the randomness of training: another seed is another network.
- **It was trained on 32×32 images** of the classes below and gives one of these classes to everything else too. It was
  not tested for fairness, shifted data or attacks; it is not for decisions about people."""

_PIXELS = """\
import numpy as np
from PIL import Image

images = np.asarray(Image.open("picture.png").convert("RGB").resize((32, 32)))[None]  # uint8 (N, 32, 32, 3)"""

_LOAD = {
    ONNX: (
        "onnxruntime alone",
        "import onnxruntime\n\n"
        'logits = onnxruntime.InferenceSession("{file}").run(None, {{"images": images}})[0]  # float32 (N, {n})',
    ),
    TORCH_EXPORT: (
        "torch alone, on the CPU",
        'import torch\n\nlogits = torch.export.load("{file}").module()(torch.tensor(images))  # float32 (N, {n})',
    ),
    SAFETENSORS: (
        "this project, which also makes its saliency maps and checks the weights' hash",
        "from pathlib import Path\nfrom study.training.checkpoint import load_model\n\n"
        'network, card = load_model(Path("."))  # wants (images / 255 - card["mean"]) / card["std"], (N, 3, 32, 32)',
    ),
}


def model_card(entry: Mapping[str, Any], card: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Markdown. ``entry``: the network's in the manifest; ``card``: its ``model.json``; ``about``: the manifest's top.

    Every number stands with its unit, the number of images, and its protocol.
    """
    config, test = card["config"], entry["test_scores"]
    place = [_ROLE_TEXTS[role] for role in entry["roles"]]
    methods = "; ".join(metrics.METHODS[m] for m in config["evaluation"]["methods"])
    mine = [
        f"# {about['study']}, trial {entry['trial']}: {entry['network']}, λ = {entry['reg_weight']:.4g}",
        f"An image classifier for {card['n_classes']} classes, trained with L = L_C + λ L_R, where L_R pulls the input "
        "gradient toward the guided-backpropagation gradient (Torres Figueroa et al., VISAPP 2024, arXiv 2404.15024). "
        f"One of the Pareto-optimal networks of the study `{about['study']}`"
        + (f": {', and '.join(place)}." if place else ".")
        if entry["on_front"]
        else f"From the study `{about['study']}`" + (f": {', and '.join(place)}." if place else ", not on its front."),
        *([_NOT_ELIGIBLE.format(reason=entry["not_eligible"])] if entry["not_eligible"] else []),
        "## Use",
        _use(entry, card),
        "## Scores",
        _scores(entry, card, test),
        f"Faithfulness: {metrics.FAITHFULNESS.describes}; protocol `{test['protocol']}`, temperature "
        f"{entry['temperature']:.4g}; methods: {methods}. The network was chosen by its validation scores. The "
        f"test split was opened for it at export ({test['opened']}); that was look "
        f"{test['looks_in_study']} at the test split in this study, and all looks are in the study's "
        f"`{names.TEST_LOG_FILE}`.",
        "## Data",
        _data(card, test),
        "## Training",
        _training(entry, config, about),
        "## Limits of saliency",
        _LIMITS,
        "## Files",
        _files(entry),
        "## Classes",
        ", ".join(f"{i} {name}" for i, name in enumerate(card["classes"])),
    ]
    return "\n\n".join(mine) + "\n"


def overview(manifest: Mapping[str, Any]) -> str:
    """Markdown for the folder of all networks: one row each, and how to check that nothing was changed."""
    lines = [
        f"# Exported networks of the study {manifest['study']}",
        "",
        f"{manifest['exported']}, by `{manifest['command']}`. Each folder has a model card. Test scores with 95 % "
        "intervals over images; the networks were chosen by validation scores.",
        "",
        f"| network | λ | place in the study | test accuracy (%) | test faithfulness ({metrics.FAITHFULNESS.unit}) |",
        "|---|---|---|---|---|",
    ]
    for n in manifest["networks"]:
        test = n["test_scores"]
        place = f"not eligible: {n['not_eligible']}" if n["not_eligible"] else ", ".join(n["roles"]) or "front"
        lines.append(
            f"| [{n['folder']}]({n['folder']}/{README_FILE}) {n['network']} | {n['reg_weight']:.4g} | {place} | "
            f"{_interval(test['accuracy'], test['accuracy_interval'])} | "
            f"{_interval(test['faithfulness'], test['faithfulness_interval'], '+')} ({test['protocol']}) |"
        )
    lines += [
        "",
        "Has anything been changed? `sha256sum --check --strict SHA256SUMS`, or with the project `python -m "
        "analysis.verify .`. Do this before loading files that came over a network.",
    ]
    return "\n".join(lines) + "\n"


def _use(entry: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    kinds = [kind for kind in (ONNX, TORCH_EXPORT, SAFETENSORS) if kind in entry["parity"]]
    blocks = []
    if kinds != [SAFETENSORS]:
        blocks.append(
            "Pixels go in as they come from an image file, logits come out: normalisation is inside, N is any number."
        )
        blocks.append(f"```python\n{_PIXELS}\n```")
    for kind in kinds:
        needs, code = _LOAD[kind]
        text = code.format(file=FILES[kind], n=card["n_classes"])
        blocks.append(f"With {needs}:\n\n```python\n{text}\n```")
    temperature = entry["temperature"]
    blocks.append(
        f"Probabilities: `softmax(logits / {temperature:.4g})`. The divisor is the network's calibrated temperature "
        "(Guo et al. 2017), fitted to validation images that were not scored; without it the probabilities are "
        f"{'too confident' if temperature > 1 else 'too modest'}. It does not change which class is the most probable."
    )
    return "\n\n".join(blocks)


def _scores(entry: Mapping[str, Any], card: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    n = entry["validation_images"]
    validation = card["scores"]
    accuracy = validation[metrics.ACCURACY.ledger_name]
    rows = [
        "| | validation (it was chosen by these) | test |",
        "|---|---|---|",
        f"| accuracy (%, higher is better) | {_interval(accuracy, wilson(accuracy, n))}, "
        f"{n} images | {_interval(test['accuracy'], test['accuracy_interval'])}, {test['accuracy_images']} images |",
    ]
    mean = validation.get(metrics.FAITHFULNESS.ledger_name)
    error = validation.get(metrics.FAITHFULNESS_ERROR)
    value = "–" if mean is None else f"{mean:+.2f}"
    if mean is not None and error is not None and math.isfinite(error):
        value = _interval(mean, [mean - 1.96 * error, mean + 1.96 * error], "+")
    if card.get("protocol") != test["protocol"]:
        value = f"under {card.get('protocol') or 'an unknown protocol'}, not comparable"
    rows.append(
        f"| faithfulness ({metrics.FAITHFULNESS.unit}, higher is better) | {value} | "
        f"{_interval(test['faithfulness'], test['faithfulness_interval'], '+')}, {test['faithfulness_images']} images |"
    )
    alignment = validation.get(metrics.ALIGNMENT.ledger_name)
    rows.append(
        "| alignment (mean cosine of input and guided gradient) | "
        f"{'–' if alignment is None else f'{alignment:.3f}'} | {test['alignment']:.3f} |"
    )
    return "\n".join(rows) + f"\n\nIn brackets: {100 * LEVEL:.0f} % intervals over images."


def _data(card: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    data = card["config"]["data"]
    return (
        f"Source `{data['source']}`, {data['labels']} labels; training content SHA-256 `{card['data_fingerprint']}`, "
        f"test content `{test['data_fingerprint']}`. Of the training content "
        f"{100 * data['validation_fraction']:g} % per class are the validation split, drawn from seed "
        f"{data['split_seed']}; {data['train_images'] or 'all the other'} images were trained on."
    )


def _training(entry: Mapping[str, Any], config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    reg = (
        f"λ = {config['reg_weight']:.6g}, error function {config['reg_error']}, gradient "
        f"{config.get('reg_gradient', 'batch')}, every {config['reg_interval']} step(s)"
        + (f", rising over {config['reg_warmup_epochs']:g} epoch(s)" if config.get("reg_warmup_epochs") else "")
        if config["reg_weight"]
        else "λ = 0: trained for accuracy alone"
    )
    lines = [
        f"- {reg}; {config['epochs']} epoch(s), batch {config['batch_size']}, learning rate {config['lr']:.4g} "
        f"({config['schedule']}), weight decay {config['weight_decay']:.3g}, seed {config['seed']}. All of it: "
        f"`config` in `{names.MODEL_CONFIG_FILE}`.",
    ]
    if about.get("study_command"):
        lines.append(f"- Study: `{about['study_command']}` (specification fingerprint `{about['fingerprint'][:12]}…`)")
    lines.append(f"- MLflow run `{entry['run_id']}`, seed {entry['seed']}, code version {about['code_version'] or '–'}")
    lines.append(f"- Export: `{about['command']}`")
    return "\n".join(lines)


def _files(entry: Mapping[str, Any]) -> str:
    parity = entry["parity"]
    lines = [
        f"Each was loaded in a fresh process and compared on {parity['images']} validation images, together and one "
        "alone:",
        "",
        "| file | largest difference of a logit |",
        "|---|---|",
    ]
    lines += [
        f"| `{FILES[kind]}` | {parity[kind]['max_logit_difference']:.1e} |" for kind in parity if kind != "images"
    ]
    lines += [
        "",
        f"`{names.MODEL_CONFIG_FILE}` holds configuration, classes, normalisation and all scores. Hashes: "
        "`SHA256SUMS` in the folder above. Neither safetensors nor ONNX files can hold code to run; a `.pt2` file from "
        "somebody else may: check its hash first.",
    ]
    return "\n".join(lines)


def _interval(mean: float, bounds: Sequence[float], sign: str = "") -> str:
    return f"{mean:{sign}.2f} [{bounds[0]:{sign}.2f}, {bounds[1]:{sign}.2f}]"
