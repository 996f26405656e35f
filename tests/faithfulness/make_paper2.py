"""Write fixtures/paper2.json: images, a small network, maps, and their five parts under protocol ``paper/2``.

    python tests/faithfulness/make_paper2.py

This is the protocol implemented a second time, from its description alone: numpy and scipy, float64, one image and one
step at a time, nothing imported from the package under test.

The protocol. The class of interest is the label, probabilities are softmax's. A map is min-max normalised at its own
resolution and upsampled bilinearly between the centres of its cells; a constant one shows nothing. Average drop,
increase and gain multiply the image in [0, 1] by it and normalise the product with the data's mean and deviation.
Insertion starts from the normalised image convolved, over zeros, with a 5×5 impulse that ``gaussian_filter`` of sigma
5 has smoothed; deletion ends at zeros. A step changes 8 × side pixels, the most salient first, equal ones in reading
order. The areas are trapezoidal.

The network: a 4×4 convolution of stride 4, ReLU, the mean over places, a linear head of five classes. Its Grad-CAM is
relu(Σ_k w_ck A_k) up to a positive factor, which the normalisation removes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FILE = Path(__file__).parent / "fixtures" / "paper2.json"
SIDE, CELL, CLASSES, CHANNELS = 32, 4, 5, 6
STEP = 8 * SIDE

Array = NDArray[np.float64]


class Network:
    """``weights``: convolution (K, 3, 4, 4) and its bias (K,), head (5, K) and its bias (5,), as nested lists."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.convolution, self.bias, self.head, self.head_bias = (
            np.array(weights[name], float) for name in ("convolution", "convolution_bias", "head", "head_bias")
        )

    def activations(self, x: Array) -> Array:
        """(K, 8, 8) of a normalised image (3, 32, 32)."""
        n = SIDE // CELL
        cells = x.reshape(3, n, CELL, n, CELL)
        return np.maximum(np.einsum("kcij,cyixj->kyx", self.convolution, cells) + self.bias[:, None, None], 0)

    def probabilities(self, x: Array) -> Array:
        logits = self.head @ self.activations(x).mean((1, 2)) + self.head_bias
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()

    def grad_cam(self, x: Array, label: int) -> Array:
        return np.maximum(np.tensordot(self.head[label], self.activations(x), 1), 0)


def upsampled(low: Array) -> Array:
    """(32, 32): bilinear between the centres of cells, the outermost values held to the border."""
    centres = (np.arange(len(low)) + 0.5) / len(low)
    places = (np.arange(SIDE) + 0.5) / SIDE
    rows = np.array([np.interp(places, centres, row) for row in low])
    return np.array([np.interp(places, centres, column) for column in rows.T]).T


def mask(low: Array) -> Array:
    span = low.max() - low.min()
    return upsampled((low - low.min()) / span if span > 0 else np.zeros_like(low))


def blurred(x: Array) -> Array:
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1
    kernel = ndimage.gaussian_filter(impulse, sigma=5)
    return np.array([ndimage.convolve(channel, kernel, mode="constant", cval=0.0) for channel in x])


def most_salient_first(salience: Array) -> list[int]:
    return sorted(range(SIDE * SIDE), key=lambda i: (-salience.flat[i], i))


def parts(fixture: dict[str, Any], case: dict[str, Any]) -> dict[str, float]:
    """The five parts in percent."""
    network = Network(fixture["network"])
    mean, std = (np.array(fixture[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    pixels = np.array(fixture["images"][case["image"]]) / 255
    x, label = (pixels - mean) / std, case["label"]
    salience = mask(np.array(case["map"], float))

    p, o = network.probabilities(x), network.probabilities((pixels * salience - mean) / std)
    q, q_o = (np.delete(values, label).sum() for values in (p, o))  # 1 - p has no digits where p is near 1
    drop = max(p[label] - o[label], 0) / p[label]
    increase = float(q_o < q)
    gain = max(q - q_o, 0) / q

    order = most_salient_first(salience)
    inserted, deleted = blurred(x), x.copy()
    curves = [[network.probabilities(image)[label] for image in (inserted, deleted)]]
    for first in range(0, SIDE * SIDE, STEP):
        for i in order[first : first + STEP]:
            inserted[:, i // SIDE, i % SIDE] = x[:, i // SIDE, i % SIDE]
            deleted[:, i // SIDE, i % SIDE] = 0
        curves.append([network.probabilities(image)[label] for image in (inserted, deleted)])
    insertion, deletion = np.trapezoid(np.array(curves), dx=1 / (len(curves) - 1), axis=0)
    return {
        "average_drop": 100 * float(drop),
        "average_increase": 100 * increase,
        "average_gain": 100 * float(gain),
        "insertion": 100 * float(insertion),
        "deletion": 100 * float(deletion),
    }


def clear(low: Array) -> bool:
    """No step ends between pixels that rounding alone could put in another order; among exact zeros it may."""
    values = np.sort(mask(low).flat)[::-1]
    before, after = values[STEP - 1 : -1 : STEP], values[STEP::STEP]
    return bool(np.all((before - after > 1e-4) | (before == 0)))


def make(seed: int) -> dict[str, Any]:
    """Draw images until there is one of every kind. All inputs are short decimals, so that the file says all."""
    rng = np.random.default_rng(seed)
    # A channel for each class, after a colour and a little texture; it speaks for its class and against the others.
    colours = rng.normal(0, 2.0, (CHANNELS, 3, 1, 1)) / CELL**2
    network = {
        "convolution": (colours + rng.normal(0, 0.1, (CHANNELS, 3, CELL, CELL))).round(3).tolist(),
        "convolution_bias": rng.normal(0, 0.3, CHANNELS).round(2).tolist(),
        "head": (rng.normal(-1.0, 1.0, (CLASSES, CHANNELS)) + 3 * np.eye(CLASSES, CHANNELS)).round(2).tolist(),
        "head_bias": rng.normal(0, 0.5, CLASSES).round(2).tolist(),
    }
    fixture: dict[str, Any] = {
        "protocol": "paper/2", "mean": [0.5, 0.45, 0.4], "std": [0.25, 0.2, 0.3], "network": network,
        "images": [], "cases": [],
    }  # fmt: skip
    mean, std = (np.array(fixture[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    net = Network(network)

    def add(what: str, image: int, label: int, low: Array) -> None:
        case = {"what": what, "image": image, "label": label, "map": low.round(6).tolist()}
        fixture["cases"].append(case | {"expected": parts(fixture, case)})

    wanted = ["many zeros", "not the predicted class", "gains", "confident, gains", "confident", "all zero"]
    for _ in range(600):
        if not wanted:
            break
        coarse = rng.uniform(0, 255, (3, 1, 1)) + rng.uniform(10, 120) * rng.normal(0, 1, (3, 4, 4))
        image = np.array([upsampled(c) for c in coarse]) + rng.normal(0, 12, (3, SIDE, SIDE))
        image = image.clip(0, 255).round()
        x = (image / 255 - mean) / std
        p = net.probabilities(x)
        for label in range(CLASSES):
            low = net.grad_cam(x, label).round(6)
            salience = mask(low)
            masked = net.probabilities((image / 255 * salience - mean) / std)
            o, left = masked[label], np.delete(masked, label).sum() / np.delete(p, label).sum()
            predicted, zeros = label == p.argmax(), float((salience == 0).mean())
            kinds = {
                # More zeros than two steps have pixels: both end among them.
                "many zeros": predicted and 0.3 < p[label] < 0.9 and 0.5 < zeros < 0.9,
                "not the predicted class": not predicted and p[label] > 0.05 and 0.3 < zeros < 0.9,
                "gains": 0.1 < p[label] < o - 0.05 < 0.85 and zeros > 0,
                "confident": predicted and 1e-5 < 1 - p[label] < 1e-3,
                "confident, gains": predicted and 1e-5 < 1 - p[label] < 1e-3 and 0.1 < left < 0.9,
                "all zero": p[label] > 0.01 and low.max() == 0,
            }
            kind = next((k for k in wanted if kinds[k]), None)
            if kind is not None and clear(low):
                wanted.remove(kind)
                fixture["images"].append(image.astype(int).tolist())
                add(kind, len(fixture["images"]) - 1, label, low)
                break
    assert not wanted, f"no image is {wanted}"
    add("constant", 0, fixture["cases"][0]["label"], np.full((8, 8), 2.0))
    return fixture


def write(fixture: dict[str, Any]) -> None:
    """One line per value, per image and per case."""
    lines = []
    for name, value in fixture.items():
        if name in ("images", "cases"):
            items = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value)
            lines.append(f"{json.dumps(name)}: [\n{items}\n]")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write(make(seed=11))  # not every seed finds images of every kind
