{{- define "hsnn.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "hsnn.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "hsnn.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "hsnn.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "hsnn.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "hsnn.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- /* What selects the pods of a part: (list . "trainer"). Never changes, as selectors cannot be changed. */ -}}
{{- define "hsnn.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "hsnn.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "hsnn.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "hsnn.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- /* What would start and then fail, or lose something, is refused before it is installed. */ -}}
{{- define "hsnn.validate" -}}
{{- $config := .Values.config -}}
{{- if ne (dig "home" "" $config) "/var/lib/hsnn" -}}
{{- fail "config.home: must be /var/lib/hsnn, where the volume is; everything else is read-only" -}}
{{- end -}}
{{- if not (dig "registry" "tracking_uri" "" $config) -}}
{{- fail "config.registry.tracking_uri: name an MLflow server; a database in the daemon's home is seen by no other pod" -}}
{{- end -}}
{{- if not (dig "http" "port" 0 $config) -}}
{{- fail "config.http.port: the probes of the daemon ask it; name a port" -}}
{{- end -}}
{{- if ne (dig "http" "host" "" $config) "0.0.0.0" -}}
{{- fail "config.http.host: must be 0.0.0.0; probes do not come from the loopback interface" -}}
{{- end -}}
{{- if and .Values.server.enabled (or (not (dig "serve" "port" 0 $config)) (ne (dig "serve" "host" "" $config) "0.0.0.0")) -}}
{{- fail "config.serve: name a port, and 0.0.0.0 as host; probes do not come from the loopback interface" -}}
{{- end -}}
{{- if le (int .Values.trainer.terminationGracePeriodSeconds) (int (dig "cadence" "publish_timeout_s" 120 $config)) -}}
{{- fail "trainer.terminationGracePeriodSeconds: must be above config.cadence.publish_timeout_s, or the last version is cut off" -}}
{{- end -}}
{{- if le (int .Values.server.terminationGracePeriodSeconds) (add (int .Values.server.preStopSeconds) (int (dig "serve" "drain_s" 10 $config))) -}}
{{- fail "server.terminationGracePeriodSeconds: must be above preStopSeconds and config.serve.drain_s together, or requests in hand are cut off" -}}
{{- end -}}
{{- if and .Values.archiver.enabled (not .Values.archiver.to) -}}
{{- fail "archiver.to: name the root of the archive" -}}
{{- end -}}
{{- $target := dig "deltas" "target" "" $config -}}
{{- if and $target (not (hasPrefix "kafka:" $target)) (not (contains "://" $target)) -}}
{{- fail "config.deltas.target: a folder of the daemon's pod is seen by no server; use kafka:TOPIC or s3://..." -}}
{{- end -}}
{{- end -}}

{{- /* Fields of a pod that all parts share: (list . "trainer"). */ -}}
{{- define "hsnn.pod" -}}
{{- $root := index . 0 -}}
{{- $part := index $root.Values (index . 1) -}}
serviceAccountName: {{ include "hsnn.serviceAccountName" $root }}
# Nothing here talks to Kubernetes.
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Annotations of a pod; a changed configuration starts it anew. */ -}}
{{- define "hsnn.podMetadata" -}}
{{- $root := index . 0 -}}
annotations:
  checksum/config: {{ $root.Values.config | toJson | sha256sum }}
  {{- with $root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "hsnn.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ index . 1 }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* Fields of a container that all parts share. */ -}}
{{- define "hsnn.container" -}}
{{- $root := index . 0 -}}
{{- $part := index $root.Values (index . 1) -}}
image: {{ printf "%s:%s" $root.Values.image.repository ($root.Values.image.tag | default $root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext: {{- toYaml $root.Values.containerSecurityContext | nindent 2 }}
resources: {{- toYaml $part.resources | nindent 2 }}
{{- with $root.Values.secretName }}
envFrom:
  - secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{- define "hsnn.mounts" -}}
- {name: config, mountPath: /etc/hsnn, readOnly: true}
- {name: home, mountPath: /var/lib/hsnn}
- {name: tmp, mountPath: /tmp}
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Volumes of a part: (list . "server"). The home is not among them: a claim, or a folder of the pod. */ -}}
{{- define "hsnn.volumes" -}}
{{- $root := index . 0 -}}
{{- $part := index $root.Values (index . 1) -}}
- name: config
  configMap: {name: {{ include "hsnn.fullname" $root }}}
- name: tmp
  emptyDir: {sizeLimit: {{ $part.tmpSize }}}
{{- with $root.Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
