"""Every metric that crosses a room: one definition, with its unit, direction and reference.

Imports nothing, so that everybody may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]
#: What a value is multiplied with to be maximised.
SIGNS: dict[Direction, int] = {"maximize": 1, "minimize": -1}


@dataclass(frozen=True)
class Metric:
    """A number that a trial reports.

    ``reference`` is the value of a network that is worth nothing, used as the hypervolume's reference point:
    never right (accuracy 0), or explanations no better than those of other images (faithfulness 0).
    """

    name: str
    ledger_name: str
    unit: str
    direction: Direction
    reference: float
    describes: str
    error_name: str = ""  # ledger name of its standard error over images, where it has one

    @property
    def sign(self) -> int:
        return SIGNS[self.direction]

    @property
    def label(self) -> str:
        """As at an axis: ``accuracy (%, higher is better)``."""
        return f"{self.name} ({self.unit}, {'higher' if self.sign > 0 else 'lower'} is better)"

    @property
    def short_unit(self) -> str:
        """As it stands behind a number: without what the number is a difference to."""
        return self.unit.split(" over ")[0]

    @property
    def difference_unit(self) -> str:
        """Of a difference between two values: percentages differ by points."""
        return "points" if self.unit.startswith("%") else self.unit


ACCURACY_ERROR = "val/accuracy_standard_error"  # binomial, over images, pp
FAITHFULNESS_ERROR = "val/faithfulness_standard_error"  # of the mean over images

ACCURACY = Metric(
    "accuracy", "val/accuracy", "%", "maximize", 0.0, "top-1 accuracy on validation images", ACCURACY_ERROR
)


def _over_images(name: str, unit: str, describes: str, *, error: bool = True) -> Metric:
    ledger_name = f"val/{name}"
    return Metric(name, ledger_name, unit, "maximize", 0.0, describes, f"{ledger_name}_standard_error" if error else "")


# Ways to say in one number how faithful a network's maps are; docs/decisions/0005 compares them.
DELETION_AGREEMENT = _over_images(
    "deletion_agreement",
    "pp over other images' maps",
    "rank correlation of a map's cells with the drop of the class's logit when a cell is deleted, minus the same for "
    "maps of other images, mean over distinct methods",
)
SUBSET_AGREEMENT = _over_images(
    "subset_agreement",
    "pp over other images' maps",
    "correlation of the sum of a map's cells that are left with the class's logit over random halves of the cells, "
    "minus the same for maps of other images, mean over distinct methods",
)
MASKING_EXCESS = _over_images(
    "masking_excess",
    "pp over shifted and other maps",
    "(100-AD+AI+AG+Ins+100-Del)/5 of the map over the same map shifted, minus the same for another image's map, at the "
    "calibrated temperature, mean over distinct methods",
)
MASKING_SHARE = _over_images(
    "masking_share", "%", "masking excess as a share of that of a linear fit to deleted cells", error=False
)
CANDIDATES: tuple[Metric, ...] = (DELETION_AGREEMENT, SUBSET_AGREEMENT, MASKING_EXCESS, MASKING_SHARE)

#: The candidate that ``faithfulness`` is; another one is a new version of every protocol.
FAITHFULNESS_IS = DELETION_AGREEMENT
FAITHFULNESS = Metric(
    "faithfulness",
    "val/faithfulness",
    FAITHFULNESS_IS.unit,
    "maximize",
    0.0,
    FAITHFULNESS_IS.describes,
    FAITHFULNESS_ERROR,
)
ALIGNMENT = Metric("alignment", "val/alignment", "cosine", "maximize", 0.0, "mean cos(input gradient, guided gradient)")
LOSS = Metric("loss", "val/loss", "nats", "minimize", 10.0, "mean cross-entropy on validation images")
PARAMETERS = Metric("parameters", "network/parameters", "count", "minimize", 1e8, "trainable parameters")
SCORE = Metric("score", "val/score", "weighted sum", "maximize", 0.0, "weighted sum of the objectives")

UNDEFINED_SHARE = Metric(
    "undefined_share",
    "val/undefined_share",
    "%",
    "minimize",
    100.0,
    "share of (image, method) maps that are undefined: all zero, constant or not finite",
)
#: Percent. With more undefined maps than this no trial is on a front: their 0 would beat an honest negative score.
MAX_UNDEFINED_SHARE = 5.0

#: What a specification may name as an objective.
OBJECTIVES: dict[str, Metric] = {m.name: m for m in (ACCURACY, FAITHFULNESS, *CANDIDATES, ALIGNMENT, LOSS, PARAMETERS)}

# Per-epoch training metrics (ledger names).
TRAIN_LOSS = "train/loss"  # L = L_C + lambda L_R, mean over the epoch's images, nats
TRAIN_CLASSIFICATION = "train/classification_loss"  # L_C, nats
TRAIN_REGULARIZATION = "train/regularization_loss"  # L_R, in [0, 2] for cosine; absent where lambda = 0
TRAIN_ACCURACY = "train/accuracy"  # %, on augmented training images
LEARNING_RATE = "train/lr"  # at the end of the epoch
EPOCH_SECONDS = "time/epoch_seconds"  # wall clock of one training epoch
EVALUATION_SECONDS = "time/evaluation_seconds"  # wall clock of one scoring

SYSTEM_METRICS = "system/"  # + MLflow's name, which has the unit; step = seconds since the run was first opened

#: Saliency methods: name -> the literature's name. ``study.saliency.REGISTRY`` has their classes.
METHODS: dict[str, str] = {
    "grad_cam": "Grad-CAM (Selvaraju et al. 2017)",
    "grad_cam_plus_plus": "Grad-CAM++ (Chattopadhay et al. 2018)",
    "xgrad_cam": "XGrad-CAM / Axiom-CAM (Fu et al. 2020)",
    "layer_cam": "LayerCAM (Jiang et al. 2021)",
    "ablation_cam": "Ablation-CAM (Desai & Ramaswamy 2020)",
    "score_cam": "Score-CAM (Wang et al. 2020)",
    "input_gradient": "input gradient (Simonyan et al. 2014)",
    "gradient_times_input": "gradient x input (Shrikumar et al. 2016)",
    "guided_backprop": "guided backpropagation (Springenberg et al. 2015)",
    "smoothgrad": "SmoothGrad (Smilkov et al. 2017)",
    "integrated_gradients": "integrated gradients (Sundararajan et al. 2017)",
}

#: The five parts of faithfulness, in percent: name -> direction.
PARTS: dict[str, Direction] = {
    "average_drop": "minimize",
    "average_increase": "maximize",
    "average_gain": "maximize",
    "insertion": "maximize",
    "deletion": "minimize",
}

#: Faithfulness protocols (study/faithfulness/protocols.py holds what they mean): name -> version. A version covers all
#: that a score depends on beside the network and the specification: masking, control, temperature, grid, and which
#: candidate ``FAITHFULNESS_IS``. tests/faithfulness/test_identity.py fails where one of these changes and it does not.
PROTOCOL_VERSIONS: dict[str, int] = {"paper": 2, "rise": 2, "dense": 2, "blur": 2}
PROTOCOLS: tuple[str, ...] = tuple(PROTOCOL_VERSIONS)


def protocol_identity(name: str) -> str:
    """E.g. ``paper/2``: two scores may be compared only where it is the same."""
    return f"{name}/{PROTOCOL_VERSIONS[name]}"


TEMPERATURE = "val/temperature"  # at which the network's probabilities are calibrated; 1 is the network as it is
OTHER_EXCESS = "val/other_excess"  # pp: masking excess that other images' maps get

#: Where two methods give one map up to a positive factor on a network that averages and applies a linear head: counted
#: once, never as two results.
SAME_MAP: dict[str, str] = {"xgrad_cam": "grad_cam"}

#: Per method and image, beside the five parts: agreements in percent, excesses in percentage points.
METHOD_SCORES: tuple[str, ...] = (
    "deletion_agreement", "other_deletion_agreement", "subset_agreement", "other_subset_agreement",
    "masking_excess", "own_excess", "other_excess",
)  # fmt: skip

# What stands in the place of a method's maps.
REFERENCE_MAPS = "reference"  # a linear fit to the logits of images with cells deleted
RANDOM_MAPS = "random"  # seeded noise
CENTRE_MAPS = "centre"  # a Gaussian in the middle, whatever the image

#: Where the object's true mask is known, in percent, higher is better.
LOCALIZATION: tuple[str, ...] = ("pointing_game", "energy_in_mask")
IMAGE_SECONDS = "time/seconds_per_scored_image"


def saliency_metric(method: str, part: str) -> str:
    """Ledger name of one part for one method, e.g. ``saliency/grad_cam/average_drop`` (percent)."""
    return f"saliency/{method}/{part}"


def undefined_metric(method: str) -> str:
    """Ledger name of the count of undefined (all-zero, constant, non-finite) maps of one method."""
    return f"saliency/{method}/undefined_maps"


def is_score(name: str) -> bool:
    """Whether a ledger metric comes from scoring maps, and so holds under the protocol of its run alone."""
    of_training = (ACCURACY.ledger_name, ACCURACY_ERROR, LOSS.ledger_name)
    return (name.startswith(("val/", "saliency/")) and name not in of_training) or name == IMAGE_SECONDS
