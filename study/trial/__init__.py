"""One trial, without Ray and MLflow: train, score, resume, and its log."""
