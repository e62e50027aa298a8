"""The settings table, and how a value is found and refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from sidecar.settings import Settings, SettingsError, option_of, read_settings, unknown_variables

# As the contract has them: the variable, the Helm key, the default as text.
CONTRACT = """
VMAFX_SIDECAR_SOCKET - /tmp/vmafx-sidecar.sock
VMAFX_SIDECAR_SOCKET_MODE socketMode 0600
VMAFX_BASE_MODEL_PATH baseModelPath /mnt/vmafx-models/base/model.onnx
VMAFX_SIDECAR_BASE_SCALER baseScaler none
VMAFX_SIDECAR_EXPORT_IO exportIo canonical
VMAFX_SIDECAR_HIDDEN hidden 64
VMAFX_SIDECAR_ACTIVATION activation relu
VMAFX_SIDECAR_CHECKPOINT_DIR checkpointDir /mnt/vmafx-models/online
VMAFX_SIDECAR_STATE_DIR stateDir -
VMAFX_SIDECAR_REPLAY_CAPACITY replayBufferSize 10000
VMAFX_SIDECAR_BATCH_SIZE batchSize 32
VMAFX_SIDECAR_REPLAY_MIX replayMixRatio 0.5
VMAFX_SIDECAR_REPLAY_POLICY replayPolicy balanced
VMAFX_SIDECAR_LR learningRate 0.0001
VMAFX_SIDECAR_LOSS loss huber
VMAFX_SIDECAR_OPTIMIZER optimizer sgd
VMAFX_SIDECAR_MOMENTUM momentum 0.9
VMAFX_SIDECAR_WEIGHT_DECAY weightDecay 0.00001
VMAFX_SIDECAR_MAX_GRAD_NORM maxGradNorm 1.0
VMAFX_SIDECAR_WARMUP_STEPS warmupSteps 100
VMAFX_SIDECAR_STEPS_PER_BATCH stepsPerBatch 4
VMAFX_SIDECAR_EMA_DECAY emaDecay 0.999
VMAFX_SIDECAR_EMA_WARMUP emaWarmup 1
VMAFX_SIDECAR_CKPT_INTERVAL_S checkpointIntervalSeconds 600
VMAFX_SIDECAR_MIN_SAMPLES_CKPT minSamplesPerCheckpoint 1000
VMAFX_SIDECAR_KEEP_CHECKPOINTS keepCheckpoints 20
VMAFX_SIDECAR_N_FEATURES nFeatures -
VMAFX_SIDECAR_FEATURES features -
VMAFX_SIDECAR_TARGET target -
VMAFX_SIDECAR_SCORE_MIN scoreMin 0
VMAFX_SIDECAR_SCORE_MAX scoreMax 100
VMAFX_SIDECAR_HOLDOUT_FRACTION holdoutFraction 0.05
VMAFX_SIDECAR_STABILITY_PLCC_DELTA stabilityPlccDelta 0.005
VMAFX_SIDECAR_STABILITY_RMSE_RATIO stabilityRmseRatio 1.1
VMAFX_SIDECAR_ROLLBACK_THRESHOLD rollbackThreshold 0.05
VMAFX_SIDECAR_TENANTS tenants -
VMAFX_SIDECAR_TENANT_RANK tenantRank 0
VMAFX_SIDECAR_TENANT_SHARE tenantShare 0.5
VMAFX_SIDECAR_TENANT_LABELS tenantLabels 0
VMAFX_SIDECAR_SNAPSHOT_INTERVAL_S snapshotIntervalSeconds 60
VMAFX_SIDECAR_JOURNAL_FSYNC journalFsync everysec
VMAFX_SIDECAR_JOURNAL_RETENTION_DAYS journalRetentionDays 90
VMAFX_SIDECAR_JOURNAL_MAX_BYTES journalMaxBytes 10737418240
VMAFX_SIDECAR_HTTP http 127.0.0.1:9091
VMAFX_SIDECAR_FOLLOW_BASE followBase 0
VMAFX_SIDECAR_HTTP_MODELS httpModels 0
VMAFX_SIDECAR_SEED seed 0
VMAFX_SIDECAR_CUDA cuda 0
VMAFX_SIDECAR_LOG_FORMAT logFormat text
VMAFX_SIDECAR_LOG_LEVEL logLevel info
"""
ROWS = [line.split() for line in CONTRACT.strip().splitlines()]
TABLE = {each.metadata["env"]: each for each in fields(Settings)}


@pytest.mark.parametrize(("env", "helm", "default"), ROWS)
def test_the_table_is_the_contracts(env, helm, default):
    setting = TABLE[env]
    assert (setting.metadata["helm"] or "-") == helm
    if default == "-":
        assert setting.default is None
    else:
        assert setting.metadata["kind"].parse(default) == setting.default


def test_there_are_no_other_settings():
    assert set(TABLE) == {row[0] for row in ROWS}


def test_an_option_beats_the_environment_which_beats_the_default():
    environment = {"VMAFX_SIDECAR_LR": "0.05", "VMAFX_SIDECAR_SEED": "7", "VMAFX_SIDECAR_BATCH_SIZE": ""}
    settings = read_settings({"learning_rate": "0.025", "momentum": None}, environment)
    assert (settings.learning_rate, settings.seed, settings.momentum, settings.batch_size) == (0.025, 7, 0.9, 32)


def test_the_state_stands_in_the_checkpoint_directory_unless_it_is_told_where():
    assert Settings(checkpoint_dir=Path("/a")).state == Path("/a/state")
    assert Settings(checkpoint_dir=Path("/a"), state_dir=Path("/b")).state == Path("/b")


def test_an_empty_http_address_means_none():
    assert read_settings({}, {"VMAFX_SIDECAR_HTTP": ""}).http == ""


@pytest.mark.parametrize(
    ("env", "value", "allowed"),
    [
        ("VMAFX_SIDECAR_REPLAY_MIX", "1", "a finite number of at least 0 and below 1"),
        ("VMAFX_SIDECAR_REPLAY_MIX", "-0.1", "a finite number of at least 0 and below 1"),
        ("VMAFX_SIDECAR_LR", "0", "a finite number above 0"),
        ("VMAFX_SIDECAR_LR", "nan", "a finite number above 0"),
        ("VMAFX_SIDECAR_LR", "inf", "a finite number above 0"),
        ("VMAFX_SIDECAR_LR", "fast", "a finite number above 0"),
        ("VMAFX_SIDECAR_BATCH_SIZE", "0", "a whole number from 1 to 65536"),
        ("VMAFX_SIDECAR_BATCH_SIZE", "1.5", "a whole number from 1 to 65536"),
        ("VMAFX_SIDECAR_SEED", "-1", "a whole number from 0"),
        ("VMAFX_SIDECAR_REPLAY_POLICY", "reservoir", "one of ring, balanced"),
        ("VMAFX_SIDECAR_OPTIMIZER", "SGD", "one of sgd, adam"),
        ("VMAFX_SIDECAR_SOCKET_MODE", "9", "an octal file mode such as 0600"),
        ("VMAFX_SIDECAR_SOCKET_MODE", "1777", "an octal file mode such as 0600"),
        ("VMAFX_SIDECAR_EMA_WARMUP", "yes", "0 or 1"),
        ("VMAFX_SIDECAR_CHECKPOINT_DIR", "a\0b", "a path"),
        ("VMAFX_SIDECAR_SCORE_MIN", "200", "expected a number under VMAFX_SIDECAR_SCORE_MAX=100"),
        (
            "VMAFX_SIDECAR_STATE_DIR",
            "/mnt/vmafx-models/online",
            "expected another directory than VMAFX_SIDECAR_CHECKPOINT_DIR=",
        ),
        ("VMAFX_SIDECAR_CUDA", "yes", "0 or 1"),
        ("VMAFX_SIDECAR_JOURNAL_MAX_BYTES", "10 parsecs", "a whole number from 0, in bytes or with a unit, such as 512MiB"),
        ("VMAFX_SIDECAR_JOURNAL_MAX_BYTES", "1.5", "a whole number from 0"),
        ("VMAFX_SIDECAR_CKPT_INTERVAL_S", "10min", "in seconds or with a unit, such as 30s, 10m, 12h or 90d"),
        ("VMAFX_SIDECAR_SNAPSHOT_INTERVAL_S", "0m", "a finite number above 0"),
    ],
)
def test_a_bad_value_is_told_with_its_variable_and_what_is_allowed(env, value, allowed):
    with pytest.raises(SettingsError) as error:
        read_settings({}, {env: value})
    message = str(error.value)
    assert message.startswith(env + "=")
    assert allowed in message
    assert value.replace("\0", "\\x00") in message


def test_a_bad_option_is_told_by_the_options_name():
    with pytest.raises(SettingsError, match=r"--batch-size='0': expected a whole number"):
        read_settings({"batch_size": "0"}, {})
    assert option_of("batch_size") == "--batch-size"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("journal_max_bytes", "10GiB", 10 << 30),
        ("journal_max_bytes", "512Mi", 512 << 20),
        ("journal_max_bytes", "1.5GB", 1_500_000_000),
        ("journal_max_bytes", "0B", 0),
        ("checkpoint_interval", "10m", 600.0),
        ("checkpoint_interval", "90", 90.0),
        ("snapshot_interval", "0.5h", 1800.0),
        ("journal_retention_days", "12h", 0.5),
        ("journal_retention_days", "90d", 90.0),
    ],
)
def test_sizes_and_durations_take_units(name, text, value):
    assert getattr(read_settings({name: text}, {}), name) == value


def test_a_variable_that_is_no_setting_is_named_with_the_nearest_one():
    environment = {"VMAFX_SIDECAR_BATCHSIZE": "16", "VMAFX_SIDECAR_SEED": "1", "VMAFX_OTHER": "1", "PATH": "/bin"}
    of_a_service = {"VMAFX_SIDECAR_SERVICE_HOST": "10.0.0.1", "VMAFX_SIDECAR_PORT_9091_TCP": "tcp://10.0.0.1:9091"}
    (said,) = unknown_variables(environment | of_a_service)
    assert said.startswith("VMAFX_SIDECAR_BATCHSIZE is no setting")
    assert said.endswith("VMAFX_SIDECAR_BATCH_SIZE")
