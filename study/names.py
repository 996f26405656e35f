"""Tags, states and file names that cross a room. Imports nothing, so that everybody may import it."""

# Ledger tags.
TAG_KEY = "study.key"  # NAME/trial/seed: unique in the ledger
TAG_STUDY = "study.name"
TAG_TRIAL = "study.trial"
TAG_SEED = "study.seed"
TAG_FINGERPRINT = "study.fingerprint"
TAG_STATE = "study.state"  # one of STATES
TAG_ATTEMPT = "study.attempt"  # token of the attempt that may write to the run
TAG_REASON = "study.reason"  # why a trial ended without a score
TAG_PROTOCOL = "study.protocol"  # identity of the protocol that all scores of the run were made under
TAG_HOST = "study.host"  # address of the machine that ran the trial, the last one
TAG_ROLE = "study.role"  # study | trial
TAG_TWIN_OF = "study.twin_of"  # number of the trial whose lambda = 0 twin this is
TAG_REPLICATE_OF = "study.replicate_of"  # number of the trial that this repeats with another seed
TAG_STOPPED_AFTER = "study.stopped_after_epochs"  # of a trial that was stopped early
TAG_CODE_VERSION = "study.code_version"
TAG_LOG = "study.log"  # where the trial writes its log, on the machine that TAG_HOST names or in shared storage
TAG_COMMAND = "study.command"  # the study.run command of the last session, as typed

#: In a trial's first result after an interruption: (epoch, report) of the rungs that it passed before.
PAST_RUNGS = "past_rungs"

# States of a trial, as written in the ledger.
RUNNING = "running"
COMPLETE = "complete"  # trained for the full budget and scored
STOPPED = "stopped"  # ended early by the scheduler
DIVERGED = "diverged"  # non-finite loss
FAILED = "failed"  # crashed more often than it may be retried
STATES = (RUNNING, COMPLETE, STOPPED, DIVERGED, FAILED)

# Files.
CHECKPOINT_FILE = "checkpoint.safetensors"  # everything needed to resume a trial; replaced atomically
MODEL_FILE = "model.safetensors"  # weights and buffers alone
MODEL_CONFIG_FILE = "model.json"  # what is needed to rebuild and read the network
PER_IMAGE_FILE = "per_image.parquet"  # per validation image: correct, and the scores of every method
STUDY_FILE = "study.json"  # the resolved specification and its fingerprint
JOURNAL = "ledger-"  # + attempt + ".jsonl": what a trial has to tell the ledger and has not told yet
ATTEMPT_FILE = "attempt"  # in a trial's folder: the token of the latest attempt at it
TEST_LOG_FILE = "test_openings.jsonl"  # in a study's folder: every opening of its test split, appended only
EVENTS_FILE = "events.jsonl"  # in a study's folder: what happened to its trials, one line each
OPTUNA_FILE = "optuna.db"
TRIAL_LOG = "trial.log"  # what happened to a trial, attempt after attempt, as text
LEDGER_FILE = "mlflow.db"
CHECKPOINT_ARTIFACTS = "checkpoint"  # artifact folder of a run that holds model, config, per-image table
LOG_ARTIFACTS = "logs"  # artifact folder of a run that holds TRIAL_LOG, once the trial is over
