"""Who runs what: Ray Tune runs the trials, Optuna proposes them. The only rooms that know either."""
