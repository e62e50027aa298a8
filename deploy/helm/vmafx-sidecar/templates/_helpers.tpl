{{- /* Names, labels, and the program's settings. */ -}}

{{- /* At most 52 characters: a label of the pods is the StatefulSet's name and 11 characters of its revision. */ -}}
{{- define "vmafx-sidecar.fullname" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- $name | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "vmafx-sidecar.trainingName" -}}
{{- .Values.operator.trainingName | default .Release.Name | trunc 49 | trimSuffix "-" -}}
{{- end }}

{{- define "vmafx-sidecar.claim" -}}
{{- .Values.persistence.models.existingClaim | default (printf "%s-models" (include "vmafx-sidecar.fullname" .)) -}}
{{- end }}

{{- define "vmafx-sidecar.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vmafx-sidecar.labels" -}}
{{ include "vmafx-sidecar.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* "true" if the sidecar is to be a native one (an init container that keeps running), otherwise "". */ -}}
{{- define "vmafx-sidecar.native" -}}
{{- $choice := .Values.sidecar.trainer.nativeSidecar -}}
{{- if or (eq $choice "always") (and (eq $choice "auto") (semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version)) -}}
true
{{- end -}}
{{- end }}

{{- /* The environment variable of each setting, except stateDir, to which _pod.tpl adds the pod's name. */ -}}
{{- define "vmafx-sidecar.variables" -}}
activation: VMAFX_SIDECAR_ACTIVATION
baseModelPath: VMAFX_BASE_MODEL_PATH
baseScaler: VMAFX_SIDECAR_BASE_SCALER
batchSize: VMAFX_SIDECAR_BATCH_SIZE
checkpointDir: VMAFX_SIDECAR_CHECKPOINT_DIR
checkpointIntervalSeconds: VMAFX_SIDECAR_CKPT_INTERVAL_S
cuda: VMAFX_SIDECAR_CUDA
emaDecay: VMAFX_SIDECAR_EMA_DECAY
emaWarmup: VMAFX_SIDECAR_EMA_WARMUP
exportIo: VMAFX_SIDECAR_EXPORT_IO
features: VMAFX_SIDECAR_FEATURES
followBase: VMAFX_SIDECAR_FOLLOW_BASE
hidden: VMAFX_SIDECAR_HIDDEN
holdoutFraction: VMAFX_SIDECAR_HOLDOUT_FRACTION
http: VMAFX_SIDECAR_HTTP
httpModels: VMAFX_SIDECAR_HTTP_MODELS
journalFsync: VMAFX_SIDECAR_JOURNAL_FSYNC
journalMaxBytes: VMAFX_SIDECAR_JOURNAL_MAX_BYTES
journalRetentionDays: VMAFX_SIDECAR_JOURNAL_RETENTION_DAYS
keepCheckpoints: VMAFX_SIDECAR_KEEP_CHECKPOINTS
learningRate: VMAFX_SIDECAR_LR
logFormat: VMAFX_SIDECAR_LOG_FORMAT
logLevel: VMAFX_SIDECAR_LOG_LEVEL
loss: VMAFX_SIDECAR_LOSS
maxGradNorm: VMAFX_SIDECAR_MAX_GRAD_NORM
minSamplesPerCheckpoint: VMAFX_SIDECAR_MIN_SAMPLES_CKPT
momentum: VMAFX_SIDECAR_MOMENTUM
nFeatures: VMAFX_SIDECAR_N_FEATURES
optimizer: VMAFX_SIDECAR_OPTIMIZER
replayBufferSize: VMAFX_SIDECAR_REPLAY_CAPACITY
replayMixRatio: VMAFX_SIDECAR_REPLAY_MIX
replayPolicy: VMAFX_SIDECAR_REPLAY_POLICY
scoreMax: VMAFX_SIDECAR_SCORE_MAX
scoreMin: VMAFX_SIDECAR_SCORE_MIN
seed: VMAFX_SIDECAR_SEED
snapshotIntervalSeconds: VMAFX_SIDECAR_SNAPSHOT_INTERVAL_S
socketMode: VMAFX_SIDECAR_SOCKET_MODE
stabilityPlccDelta: VMAFX_SIDECAR_STABILITY_PLCC_DELTA
stabilityRmseRatio: VMAFX_SIDECAR_STABILITY_RMSE_RATIO
rollbackThreshold: VMAFX_SIDECAR_ROLLBACK_THRESHOLD
stepsPerBatch: VMAFX_SIDECAR_STEPS_PER_BATCH
target: VMAFX_SIDECAR_TARGET
tenantLabels: VMAFX_SIDECAR_TENANT_LABELS
tenantRank: VMAFX_SIDECAR_TENANT_RANK
tenantShare: VMAFX_SIDECAR_TENANT_SHARE
tenants: VMAFX_SIDECAR_TENANTS
warmupSteps: VMAFX_SIDECAR_WARMUP_STEPS
weightDecay: VMAFX_SIDECAR_WEIGHT_DECAY
{{- end }}

{{- /* The program's defaults for the settings that the chart itself needs. */ -}}
{{- define "vmafx-sidecar.defaults" -}}
checkpointDir: /mnt/vmafx-models/online
checkpointIntervalSeconds: "600"
journalMaxBytes: "10737418240"
scoreMax: "100"
scoreMin: "0"
{{- end }}

{{- /* A value as the text of an environment variable. Numbers are written as in JSON: YAML would write 10737418240 as 1.073741824e+10. */ -}}
{{- define "vmafx-sidecar.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{- /* (list . "key"): a setting as text, or its default if it is not set. */ -}}
{{- define "vmafx-sidecar.setting" -}}
{{- $trainer := (index . 0).Values.sidecar.trainer -}}
{{- $key := index . 1 -}}
{{- if hasKey $trainer $key -}}
{{- include "vmafx-sidecar.text" (get $trainer $key) -}}
{{- else -}}
{{- get (include "vmafx-sidecar.defaults" . | fromYaml) $key -}}
{{- end -}}
{{- end }}

{{- /* (list . "key"): a setting that may have a unit of size or time, as a whole number of bytes or seconds, rounded up. */ -}}
{{- define "vmafx-sidecar.number" -}}
{{- $text := include "vmafx-sidecar.setting" . -}}
{{- $unit := regexFind "[KMGT]?i?B?[smhd]?$" $text -}}
{{- $of := dict "s" 1 "m" 60 "h" 3600 "d" 86400 "K" 1e3 "Ki" 1024 "M" 1e6 "Mi" 1048576 "G" 1e9 "Gi" 1073741824 "T" 1e12 "Ti" 1099511627776 -}}
{{- mulf (trimSuffix $unit $text | float64) (get $of (trimSuffix "B" $unit) | default 1 | float64) | ceil | int64 -}}
{{- end }}

{{- define "vmafx-sidecar.port" -}}
{{- regexFind "[0-9]+$" .Values.sidecar.trainer.http -}}
{{- end }}

{{- /* Checks that compare two values, which the schema cannot do. */ -}}
{{- define "vmafx-sidecar.check" -}}
{{- $min := include "vmafx-sidecar.setting" (list . "scoreMin") -}}
{{- $max := include "vmafx-sidecar.setting" (list . "scoreMax") -}}
{{- if ge (float64 $min) (float64 $max) -}}
{{- fail (printf "sidecar.trainer.scoreMin is %s: expected a number under scoreMax, which is %s" $min $max) -}}
{{- end -}}
{{- $limits := .Values.sidecar.trainer.resources.limits | default dict -}}
{{- if and .Values.sidecar.trainer.cuda (not (hasKey $limits "nvidia.com/gpu")) -}}
{{- fail "sidecar.trainer.cuda is 1: expected nvidia.com/gpu among sidecar.trainer.resources.limits; without it the pod gets no GPU" -}}
{{- end -}}
{{- $mount := .Values.persistence.models.mountPath -}}
{{- range $key := list "checkpointDir" "stateDir" -}}
{{- $directory := include "vmafx-sidecar.setting" (list $ $key) -}}
{{- if and $directory (not (hasPrefix (printf "%s/" $mount) $directory)) -}}
{{- fail (printf "sidecar.trainer.%s is %s: expected a path under persistence.models.mountPath, which is %s; nothing else is kept" $key $directory $mount) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* At most 52 characters: a Job's name is the CronJob's and 11 more. */ -}}
{{- define "vmafx-sidecar.fleetName" -}}
{{- printf "%s-fleet" (include "vmafx-sidecar.fullname" . | trunc 46 | trimSuffix "-") -}}
{{- end }}

{{- /* The fleet's job reads what outlives pods, and writes where they look. */ -}}
{{- define "vmafx-sidecar.checkFleet" -}}
{{- if not .Values.persistence.models.enabled -}}
{{- fail "fleet.enabled is true: expected persistence.models.enabled to be true; an emptyDir is seen by its own pod alone" -}}
{{- end -}}
{{- if include "vmafx-sidecar.stateEndsWithPod" . -}}
{{- fail "fleet.enabled is true: expected sidecar.trainer.stateDir to be a directory on the models volume; in the pods of another chart journals are in an emptyDir otherwise" -}}
{{- end -}}
{{- if and .Values.node.existingVolumes.models (not .Values.persistence.models.existingClaim) -}}
{{- fail "fleet.enabled is true: expected persistence.models.existingClaim to be the claim of node.existingVolumes.models; the job is a pod of its own" -}}
{{- end -}}
{{- if and .Values.fleet.scheduler (not (hasPrefix "tls://" .Values.fleet.scheduler)) -}}
{{- fail (printf "fleet.scheduler is %s: expected tls://HOST:PORT; without TLS a scheduler is accepted on loopback only" .Values.fleet.scheduler) -}}
{{- end -}}
{{- end }}
