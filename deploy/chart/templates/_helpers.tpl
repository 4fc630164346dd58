{{/* Labels of all objects. */}}
{{- define "nodestead.labels" -}}
{{ include "nodestead.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What selects the pods. There is one nodestead in a cluster: two would want the same ports of a node. */}}
{{- define "nodestead.selector" -}}
app.kubernetes.io/name: nodestead
{{- end }}

{{- define "nodestead.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The port of an address of the agent, as in ":9853" or "[::1]:9853". */}}
{{- define "nodestead.port" -}}
{{ splitList ":" . | last }}
{{- end }}

{{/* The IP of it; empty: all. */}}
{{- define "nodestead.ip" -}}
{{ regexReplaceAll ":[0-9]+$" . "" | trimAll "[]" }}
{{- end }}

{{- define "nodestead.watchAddress" -}}
{{ dig "http" "watch" ":9853" (.Values.config | default dict) }}
{{- end }}

{{- define "nodestead.trustAddress" -}}
{{ dig "http" "trust" ":9854" (.Values.config | default dict) }}
{{- end }}

{{/* Not empty when Events are written. */}}
{{- define "nodestead.events" -}}
{{- if eq (dig "kubernetes" "events" "auto" (.Values.config | default dict) | toString) "auto" }}yes{{ end }}
{{- end }}

{{/* How many slots of restarts there are. */}}
{{- define "nodestead.slots" -}}
{{- if .Values.trust.enabled }}{{ dig "trust" "restarts" "concurrency" 1 (.Values.config | default dict) | int }}{{ else }}0{{ end }}
{{- end }}

{{/* Not empty when a container, "watch" or "trust", asks the API server. */}}
{{- define "nodestead.api" -}}
{{- $slots := include "nodestead.slots" .root | int }}
{{- if or (include "nodestead.events" .root) (and (eq .container "trust") (gt $slots 0)) }}yes{{ end }}
{{- end }}

{{/* The agent's configuration file. */}}
{{- define "nodestead.config" -}}
{{- $config := deepCopy (.Values.config | default dict) }}
{{- /* YAML 1.1, which Helm reads, takes a bare off for false. */}}
{{- $switches := list "kubernetes.events" "names.workloads.cri" "names.workloads.proc" "trust.store" "trust.certs_d"
      "trust.runtimes.docker.enabled" "trust.runtimes.containerd.enabled" "trust.runtimes.crio.enabled" }}
{{- range $switches }}
  {{- $path := splitList "." . }}
  {{- $at := $config }}
  {{- range initial $path }}{{ $at = get $at . | default dict }}{{ end }}
  {{- if eq (get $at (last $path) | toString) "false" }}{{ $_ := set $at (last $path) "off" }}{{ end }}
{{- end }}
{{- $sources := list }}
{{- if .Values.trust.caSecret.name }}{{ $sources = append $sources "/etc/nodestead/ca" }}{{ end }}
{{- range .Values.trust.sources }}{{ $sources = append $sources (include "nodestead.sourcePath" .) }}{{ end }}
{{- if $sources }}
  {{- $_ := set $config "trust" (merge (dict "sources" $sources) ($config.trust | default dict)) }}
{{- end }}
{{- if .Values.webConfig.secret }}
  {{- $_ := set $config "http" (merge (dict "web_config" "/etc/nodestead/web/web.yml") ($config.http | default dict)) }}
{{- end }}
{{- $_ := set $config "host_root" "/host" }}
{{- toYaml $config }}
{{- end }}

{{/* Where one of trust.sources is mounted. */}}
{{- define "nodestead.sourcePath" -}}
/etc/nodestead/sources/{{ if .secret }}secret-{{ .secret }}{{ else }}configmap-{{ .configMap }}{{ end }}
{{- end }}

{{/* A probe of path at an address. */}}
{{- define "nodestead.probe" }}
{{- $port := include "nodestead.port" .address | int }}
{{- $host := include "nodestead.ip" .address }}
{{- if has $host (list "0.0.0.0" "::") }}{{ $host = "" }}{{ end }}
{{- if eq .root.Values.webConfig.probes "TCP" }}
tcpSocket:
{{- else }}
httpGet:
  path: {{ .path }}
  scheme: {{ .root.Values.webConfig.probes }}
{{- end }}
  port: {{ $port }}
  {{- with $host }}
  host: {{ . | quote }}
  {{- end }}
{{- end }}

{{/* What both containers have. */}}
{{- define "nodestead.container" -}}
{{- $v := .root.Values }}
{{- $own := index $v .name }}
name: {{ .name }}
image: {{ include "nodestead.image" .root | quote }}
imagePullPolicy: {{ $v.image.pullPolicy }}
args: [{{ .name }}, --config=/etc/nodestead/config/nodestead.yaml]
env:
  - name: NODE_NAME
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  {{- with $own.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: {{ .name }}
    containerPort: {{ include "nodestead.port" .address }}
    hostPort: {{ include "nodestead.port" .address }}
    protocol: TCP
readinessProbe:
  {{- include "nodestead.probe" (merge (dict "path" "/readyz") .) | trim | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  {{- include "nodestead.probe" (merge (dict "path" "/healthz") .) | trim | nindent 2 }}
  periodSeconds: 20
  timeoutSeconds: 5
resources:
  {{- toYaml $own.resources | nindent 2 }}
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add: [{{ .capabilities | join ", " }}]
{{- end }}

{{/* The volumes of both containers. */}}
{{- define "nodestead.mounts" -}}
- {name: config, mountPath: /etc/nodestead/config, readOnly: true}
{{- if .root.Values.webConfig.secret }}
- {name: web, mountPath: /etc/nodestead/web, readOnly: true}
{{- end }}
{{- if include "nodestead.api" (dict "root" .root "container" .name) }}
- {name: api, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}
{{- end }}
