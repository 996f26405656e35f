"""One network's training: the regularized loss, the epoch loop, checkpoints. torch only; knows no tuner."""
