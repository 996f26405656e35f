"""A study of many invented runs, written straight into MLflow's tables: its API would take half an hour for 10,000."""

from __future__ import annotations

import json
import math
import random
import uuid
from typing import Any

from study import metrics, names
from study.config import TrialConfig
from study.ledger import Ledger
from study.ledger.mlflow_internals import engine_of
from study.ledger.records import flatten, run_name

SPEC: dict[str, Any] = {
    "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
    "scalarize": None,
    "space": {
        "network": {"choice": ["resnet18", "mobilenet_v2"]},
        "lr": {"float": [0.01, 0.5], "log": True},
        "reg_weight": {"float": [1e-3, 10], "log": True, "zero": True},
        "reg_error": {"choice": ["cosine", "mse"], "when": "reg_weight > 0"},
        "weight_decay": {"float": [1e-5, 1e-2], "log": True},
    },
    "fixed": {},
    "fidelity": {"max_epochs": 10, "rungs": [3]},
    "data": {"source": "shapes"},
    "evaluation": {"protocol": "paper", "methods": ["grad_cam", "grad_cam_plus_plus"], "images": 500},
    "resources": {"cpus": 4, "gpus": 0.5},
    "budget": {"trials": 10_000},
    "seed": 0,
}
_START_MS = 1_760_000_000_000
_EPOCHS = 10


def write_runs(ledger: Ledger, first: int, n: int, replicates: int = 2) -> None:
    """Append ``n`` runs, trials ``first`` on, ``replicates`` seeds per configuration. Opens the study if it is new.

    One in ten fails, one in five is stopped at the rung. Accuracy rises with a good learning rate and falls with large
    lambda; faithfulness rises with lambda.
    """
    from mlflow import MlflowClient
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import insert

    if first == 0:
        tags = {names.TAG_CODE_VERSION: "0.1.0", "version.torch": "2.14.1"}
        ledger.open_study(fingerprint="0" * 64, spec=SPEC, tags=tags, artifact_location=None)
    client = MlflowClient(ledger.tracking_uri)
    experiment = int(client.get_experiment_by_name(ledger.study).experiment_id)
    rows: dict[Any, list[dict[str, Any]]] = {
        table: [] for table in (SqlRun, SqlTag, SqlParam, SqlMetric, SqlLatestMetric)
    }
    for trial in range(first, first + n):
        run_id = uuid.UUID(int=trial + 1).hex
        config = _config(trial // replicates, trial % replicates)
        curves, state, reason, end_ms = _life(config, trial)
        status = "FINISHED" if state in (names.COMPLETE, names.STOPPED) else "FAILED"
        rows[SqlRun].append(
            {
                "run_uuid": run_id, "name": run_name(trial, config), "source_type": "UNKNOWN", "source_name": "",
                "entry_point_name": "", "user_id": "", "status": status, "start_time": _START_MS + 5000 * trial,
                "end_time": end_ms, "deleted_time": None, "source_version": "", "lifecycle_stage": "active",
                "artifact_uri": f"/nowhere/{run_id}", "experiment_id": experiment,
            }
        )  # fmt: skip
        own = {
            names.TAG_ROLE: "trial", names.TAG_TRIAL: str(trial), names.TAG_SEED: str(config["seed"]),
            names.TAG_STATE: state, names.TAG_KEY: f"{ledger.study}/{trial}/{config['seed']}",
            names.TAG_ATTEMPT: "1", names.TAG_STUDY: ledger.study, names.TAG_PROTOCOL: "paper/2",
            **({names.TAG_REASON: reason} if reason else {}),
        }  # fmt: skip
        rows[SqlTag] += [{"run_uuid": run_id, "key": k, "value": v} for k, v in own.items()]
        rows[SqlParam] += [{"run_uuid": run_id, "key": k, "value": v} for k, v in flatten(config).items()]
        for epoch, report in enumerate(curves, 1):
            for key, value in report.items():
                point = {
                    "run_uuid": run_id, "key": key, "value": value, "is_nan": False, "step": epoch,
                    "timestamp": int(_START_MS + 5000 * trial + 20_000 * epoch),
                }  # fmt: skip
                rows[SqlMetric].append(point)
                if epoch == len(curves):
                    rows[SqlLatestMetric].append(point)
        if len(rows[SqlRun]) == 500 or trial == first + n - 1:
            with engine_of(client).begin() as connection:
                for table, values in rows.items():
                    if values:
                        connection.execute(insert(table), values)
            rows = {table: [] for table in rows}


def _config(configuration: int, seed: int) -> dict[str, Any]:
    rng = random.Random(configuration)
    weight = 0.0 if configuration % 5 == 0 else 10 ** rng.uniform(-3, 1)
    return TrialConfig(
        network=rng.choice(SPEC["space"]["network"]["choice"]),
        epochs=_EPOCHS,
        lr=10 ** rng.uniform(-2, math.log10(0.5)),
        reg_weight=weight,
        reg_error=rng.choice(["cosine", "mse"]),
        weight_decay=10 ** rng.uniform(-5, -2),
        rungs=(3,),
        seed=seed,
    ).to_dict()


def _life(config: dict[str, Any], trial: int) -> tuple[list[dict[str, float]], str, str, int]:
    """Reports by epoch, state, reason, end (Unix ms)."""
    rng = random.Random(10**6 + trial)
    state = names.FAILED if trial % 10 == 9 else names.STOPPED if trial % 5 == 3 else names.COMPLETE
    epochs = {names.FAILED: rng.randint(1, 9), names.STOPPED: 3}.get(state, _EPOCHS)
    good = 75 - 8 * abs(math.log10(config["lr"] / 0.1)) - 4 * math.log1p(config["reg_weight"]) + rng.gauss(0, 0.7)
    faithful = 8 + 3 * math.log1p(10 * config["reg_weight"]) + rng.gauss(0, 0.7)
    reports = []
    for epoch in range(1, epochs + 1):
        part = 1 - math.exp(-epoch / 3)
        report = {
            "epoch": float(epoch), metrics.TRAIN_LOSS: 4 - 3 * part, metrics.TRAIN_CLASSIFICATION: 4 - 3.1 * part,
            metrics.TRAIN_ACCURACY: good * part, metrics.LEARNING_RATE: config["lr"] * (1 - epoch / 10),
            metrics.EPOCH_SECONDS: 15.0, metrics.EVALUATION_SECONDS: 5.0, metrics.PARAMETERS.ledger_name: 11e6,
            metrics.ACCURACY.ledger_name: good * part, metrics.LOSS.ledger_name: 4 - 2.8 * part,
        }  # fmt: skip
        if epoch in (3, _EPOCHS):
            report |= {metrics.FAITHFULNESS.ledger_name: faithful * part, metrics.ALIGNMENT.ledger_name: 0.1 + part / 3}
            report |= {m.ledger_name: faithful * part for m in metrics.CANDIDATES}
            report |= {metrics.TEMPERATURE: 1.2, metrics.UNDEFINED_SHARE.ledger_name: 0.0}
            report |= {
                metrics.saliency_metric(m, p): 50 * part
                for m in SPEC["evaluation"]["methods"]
                for p in (*metrics.PARTS, *metrics.METHOD_SCORES)
            }
        reports.append(report)
    reason = {names.FAILED: json.dumps("worker died")[1:-1], names.STOPPED: "stopped at rung 3"}.get(state, "")
    return reports, state, reason, _START_MS + 5000 * trial + 20_000 * epochs
