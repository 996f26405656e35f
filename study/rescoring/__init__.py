"""Studies whose scores are of another protocol: their stored networks are scored again."""
