"""The learning rate as a pure function of the step: a resumed training needs no scheduler state."""

from __future__ import annotations

import math

from study.config import TrialConfig


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Batches in an epoch. The last, partial batch counts unless it holds one image, which batch-norm cannot use."""
    steps, rest = divmod(n_images, batch_size)
    return steps + (rest > 1 or (rest == 1 and steps == 0))


def learning_rate(config: TrialConfig, step: int, steps_per_epoch: int) -> float:
    """Rate of one optimizer step, counted from 0 over the whole training.

    Linear warm-up over ``warmup_epochs`` reaches ``lr`` with its last step. Then ``constant``; ``cosine`` or
    ``linear``, falling to 0 at the end of the training (Loshchilov & Hutter 2017, one period; with the warm-up a
    triangle); or ``step``, times ``gamma`` at each of ``milestones`` (fractions of the whole training).
    """
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    rate = config.lr
    if config.schedule == "step":
        # The tolerance keeps 0.3 x 200 epochs at epoch 60, whatever the product's last bit.
        passed = sum(step / total >= milestone - 1e-12 for milestone in config.milestones)
        rate *= config.gamma**passed
    if step < warmup:
        return rate * min(1.0, (step + 1) / warmup)
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
    elif config.schedule == "linear":
        rate *= 1 - (step - warmup) / max(total - warmup, 1)
    return rate


def regularizer_weight(config: TrialConfig, step: int, steps_per_epoch: int) -> float:
    """The weight of L_R in one step, counted from 0 over the whole training.

    Lazy regularization (Karras et al. 2020, appendix B): every ``reg_interval``-th step carries the weight of all.
    Linear warm-up over ``reg_warmup_epochs`` reaches ``reg_weight`` with its last step.
    """
    if step % config.reg_interval != 0:
        return 0.0
    weight = config.reg_weight * config.reg_interval
    warmup = config.reg_warmup_epochs * steps_per_epoch
    return weight * (step + 1) / warmup if step + 1 < warmup else weight
