"""Ray Tune runs the trials that the search proposes. The only room that knows Ray."""

import os

# Read by Ray when it is imported. Its snapshot is not what a study continues from (see docs/decisions), so it is
# written rarely; its own loggers would write every report a second time; usage statistics stay at home. The deaths of
# machines and processes are told by the study in a line each, where Ray would print its own state in dozens.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "Raylet is terminated|has been marked dead|A worker died or was killed",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}.items():
    os.environ.setdefault(_name, _value)
