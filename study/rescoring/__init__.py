"""Studies whose scores are of another protocol: refused where they would be mixed, or scored again."""
