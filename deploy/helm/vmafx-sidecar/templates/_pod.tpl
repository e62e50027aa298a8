{{- /*
The parts of a pod. Each takes this chart's context: "." in this chart, `index .Subcharts "vmafx-sidecar"` in another one.
docs/helm.md shows the lines.
*/ -}}

{{- /* For the list of initContainers: the sidecar, if it is a native one. */ -}}
{{- define "vmafx-sidecar.initContainers" -}}
{{- if and .Values.sidecar.trainer.enabled (include "vmafx-sidecar.native" .) -}}
- restartPolicy: Always
  {{- include "vmafx-sidecar.container" . | nindent 2 }}
{{- end -}}
{{- end }}

{{- /* For the list of containers: the sidecar, if it is an ordinary container. */ -}}
{{- define "vmafx-sidecar.containers" -}}
{{- if and .Values.sidecar.trainer.enabled (not (include "vmafx-sidecar.native" .)) -}}
- {{ include "vmafx-sidecar.container" . | nindent 2 | trim }}
{{- end -}}
{{- end }}

{{- define "vmafx-sidecar.container" -}}
{{- include "vmafx-sidecar.check" . -}}
{{- $trainer := .Values.sidecar.trainer -}}
name: vmafx-sidecar
image: {{ printf "%s:%s" $trainer.image.repository ($trainer.image.tag | default .Chart.AppVersion) | quote }}
{{- with $trainer.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
args: [serve]
# Kubernetes expands $(NAME) in a value and reads $$ as $, so each $ in a setting is doubled.
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- range $key, $variable := include "vmafx-sidecar.variables" . | fromYaml }}
  {{- if hasKey $trainer $key }}
  - name: {{ $variable }}
    value: {{ include "vmafx-sidecar.text" (get $trainer $key) | replace "$" "$$" | quote }}
  {{- end }}
  {{- end }}
  {{- if $trainer.cuda }}
  # Where CuPy keeps compiled kernels; the root file system is read-only.
  - name: CUPY_CACHE_DIR
    value: /tmp/cupy
  {{- end }}
  # A directory for each pod, because a journal can have only one writer.
  - name: VMAFX_SIDECAR_STATE_DIR
    value: {{ printf "%s/$(POD_NAME)" (include "vmafx-sidecar.stateDir" . | replace "$" "$$") | quote }}
ports:
  - name: vmafx-trainer
    containerPort: {{ include "vmafx-sidecar.port" . }}
# Ready once the socket accepts pairs. Before that, the end of the journal is trained on again; a restart would start that over, so the
# probe waits for ten minutes.
startupProbe:
  httpGet: {path: /readyz, port: vmafx-trainer}
  periodSeconds: 1
  failureThreshold: 600
readinessProbe:
  httpGet: {path: /readyz, port: vmafx-trainer}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /healthz, port: vmafx-trainer}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
resources: {{- toYaml $trainer.resources | nindent 2 }}
securityContext: {{- include "vmafx-sidecar.securityContext" . | nindent 2 }}
volumeMounts:
  - {name: {{ include "vmafx-sidecar.existingVolume" (list . "tmp") | default "vmafx-tmp" | quote }}, mountPath: /tmp}
  - {name: {{ include "vmafx-sidecar.existingVolume" (list . "models") | default "vmafx-models" | quote }}, mountPath: {{ .Values.persistence.models.mountPath | quote }}}
  {{- if include "vmafx-sidecar.stateEndsWithPod" . }}
  - {name: vmafx-state, mountPath: /var/lib/vmafx-sidecar}
  {{- end }}
{{- end }}

{{- /*
"true" if the state is lost with the pod. A Deployment's pods get new names each time, so their directories on a volume would never be
found again and only pile up. If the pods keep their names, set stateDir.
*/ -}}
{{- define "vmafx-sidecar.stateEndsWithPod" -}}
{{- if not (or .Values.node.enabled .Values.sidecar.trainer.stateDir) -}}
true
{{- end -}}
{{- end }}

{{- /* The directory that holds the pods' state directories. */ -}}
{{- define "vmafx-sidecar.stateDir" -}}
{{- if .Values.sidecar.trainer.stateDir -}}
{{- .Values.sidecar.trainer.stateDir -}}
{{- else if include "vmafx-sidecar.stateEndsWithPod" . -}}
/var/lib/vmafx-sidecar
{{- else -}}
{{- printf "%s/state" (include "vmafx-sidecar.setting" (list . "checkpointDir")) -}}
{{- end -}}
{{- end }}

{{- /* Pod Security "restricted" and a read-only root file system. For the node too, because one uid must own the socket. */ -}}
{{- define "vmafx-sidecar.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* fsGroup makes the volumes writable for the sidecar. */ -}}
{{- define "vmafx-sidecar.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* The label by which the Service, the PodMonitor and the NetworkPolicy find pods with a sidecar. */ -}}
{{- define "vmafx-sidecar.podLabels" -}}
{{- if .Values.sidecar.trainer.enabled -}}
vmafx-trainer: {{ include "vmafx-sidecar.trainingName" . }}
{{- end -}}
{{- end }}

{{- /* (list . "tmp"): the name of that volume, if another chart's pods have it already. */ -}}
{{- define "vmafx-sidecar.existingVolume" -}}
{{- $node := (index . 0).Values.node -}}
{{- $existing := get $node.existingVolumes (index . 1) -}}
{{- if and $existing $node.enabled -}}
{{- fail (printf "node.existingVolumes.%s is %s: expected it to be empty while node.enabled is true; only pods of another chart have volumes already" (index . 1) $existing) -}}
{{- end -}}
{{- $existing -}}
{{- end }}

{{- /* Those that the pod does not have yet. Empty if this chart has neither a sidecar nor a node. */ -}}
{{- define "vmafx-sidecar.volumes" -}}
{{- if or .Values.sidecar.trainer.enabled .Values.node.enabled -}}
{{- if not (include "vmafx-sidecar.existingVolume" (list . "tmp")) }}
- name: vmafx-tmp
  emptyDir: {}
{{- end }}
{{- if not (include "vmafx-sidecar.existingVolume" (list . "models")) }}
- name: vmafx-models
  {{- if .Values.persistence.models.enabled }}
  persistentVolumeClaim: {claimName: {{ include "vmafx-sidecar.claim" . | quote }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- if include "vmafx-sidecar.stateEndsWithPod" . }}
- name: vmafx-state
  emptyDir: {}
{{- end }}
{{- end -}}
{{- end }}

{{- /* For the node: the socket is in /tmp, and models are read-only. What the pod has already, the node mounts itself. */ -}}
{{- define "vmafx-sidecar.nodeVolumeMounts" -}}
{{- if or .Values.sidecar.trainer.enabled .Values.node.enabled -}}
{{- if not (include "vmafx-sidecar.existingVolume" (list . "tmp")) }}
- {name: vmafx-tmp, mountPath: /tmp}
{{- end }}
{{- if not (include "vmafx-sidecar.existingVolume" (list . "models")) }}
- {name: vmafx-models, mountPath: {{ .Values.persistence.models.mountPath | quote }}, readOnly: true}
{{- end }}
{{- end -}}
{{- end }}

{{- /* For a NetworkPolicy of the pods: who may reach the sidecar. */ -}}
{{- define "vmafx-sidecar.ingress" -}}
- ports:
    - port: {{ include "vmafx-sidecar.port" . }}
  from: {{- toYaml .Values.networkPolicy.from | nindent 4 }}
{{- end }}
