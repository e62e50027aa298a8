{{- /*
The parts of a pod. Each takes this chart's context: "." here, and in another chart
`index .Subcharts "vmafx-sidecar"`. docs/helm.md shows the lines.
*/ -}}

{{- /* The sidecar in the list of initContainers, where it is a native one. */ -}}
{{- define "vmafx-sidecar.initContainers" -}}
{{- if and .Values.sidecar.trainer.enabled (include "vmafx-sidecar.native" .) -}}
- restartPolicy: Always
  {{- include "vmafx-sidecar.container" . | nindent 2 }}
{{- end -}}
{{- end }}

{{- /* The sidecar in the list of containers, where it is an ordinary one. */ -}}
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
# Kubernetes reads $(NAME) in a value as a variable, and $$ as $; so a $ of a setting is doubled.
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- range $key, $variable := include "vmafx-sidecar.variables" . | fromYaml }}
  {{- if hasKey $trainer $key }}
  - name: {{ $variable }}
    value: {{ include "vmafx-sidecar.text" (get $trainer $key) | replace "$" "$$" | quote }}
  {{- end }}
  {{- end }}
  # A directory for each pod: a journal has one writer.
  - name: VMAFX_SIDECAR_STATE_DIR
    value: {{ printf "%s/$(POD_NAME)" (include "vmafx-sidecar.stateDir" . | replace "$" "$$") | quote }}
ports:
  - name: vmafx-trainer
    containerPort: {{ include "vmafx-sidecar.port" . }}
# Ready when the socket accepts, which is after the journal's end has been trained on again. A restart begins that anew,
# so it is given ten minutes.
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
  - {name: vmafx-tmp, mountPath: /tmp}
  - {name: vmafx-models, mountPath: {{ .Values.persistence.models.mountPath | quote }}}
  {{- if include "vmafx-sidecar.stateEndsWithPod" . }}
  - {name: vmafx-state, mountPath: /var/lib/vmafx-sidecar}
  {{- end }}
{{- end }}

{{- /*
"true" where state has no directory that outlives the pod. The names of a Deployment's pods never come again, so their
directories on a volume would only pile up; whoever has pods with lasting names sets stateDir.
*/ -}}
{{- define "vmafx-sidecar.stateEndsWithPod" -}}
{{- if not (or .Values.node.enabled .Values.sidecar.trainer.stateDir) -}}
true
{{- end -}}
{{- end }}

{{- /* What holds the state directories of the pods. */ -}}
{{- define "vmafx-sidecar.stateDir" -}}
{{- if .Values.sidecar.trainer.stateDir -}}
{{- .Values.sidecar.trainer.stateDir -}}
{{- else if include "vmafx-sidecar.stateEndsWithPod" . -}}
/var/lib/vmafx-sidecar
{{- else -}}
{{- printf "%s/state" (include "vmafx-sidecar.setting" (list . "checkpointDir")) -}}
{{- end -}}
{{- end }}

{{- /* Pod Security "restricted", and a root file system that nobody writes to. Of the node too: one uid owns the socket. */ -}}
{{- define "vmafx-sidecar.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* fsGroup makes the volumes writable to the sidecar. */ -}}
{{- define "vmafx-sidecar.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* How the Service, the PodMonitor and the NetworkPolicy find the pods that train. */ -}}
{{- define "vmafx-sidecar.podLabels" -}}
{{- if .Values.sidecar.trainer.enabled -}}
vmafx-trainer: {{ include "vmafx-sidecar.trainingName" . }}
{{- end -}}
{{- end }}

{{- /* Nothing where there is neither a sidecar nor a node of this chart. */ -}}
{{- define "vmafx-sidecar.volumes" -}}
{{- if or .Values.sidecar.trainer.enabled .Values.node.enabled -}}
- name: vmafx-tmp
  emptyDir: {}
- name: vmafx-models
  {{- if .Values.persistence.models.enabled }}
  persistentVolumeClaim: {claimName: {{ include "vmafx-sidecar.claim" . | quote }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- if include "vmafx-sidecar.stateEndsWithPod" . }}
- name: vmafx-state
  emptyDir: {}
{{- end }}
{{- end -}}
{{- end }}

{{- /* The node's: the socket is in /tmp; models are read, never written. */ -}}
{{- define "vmafx-sidecar.nodeVolumeMounts" -}}
{{- if or .Values.sidecar.trainer.enabled .Values.node.enabled -}}
- {name: vmafx-tmp, mountPath: /tmp}
- {name: vmafx-models, mountPath: {{ .Values.persistence.models.mountPath | quote }}, readOnly: true}
{{- end -}}
{{- end }}
