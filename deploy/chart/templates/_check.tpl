{{/* What the schema cannot say. */}}
{{- define "nodestead.check" -}}
{{- if not (or .Values.watch.enabled .Values.trust.enabled) }}
  {{- fail "watch.enabled and trust.enabled are both false: nothing is left to install" }}
{{- end }}
{{- if and .Values.watch.enabled .Values.trust.enabled
      (eq (include "nodestead.watchAddress" . | splitList ":" | last) (include "nodestead.trustAddress" . | splitList ":" | last)) }}
  {{- fail "config.http.watch and config.http.trust have the same port" }}
{{- end }}
{{- if and (ne .Values.webConfig.probes "HTTP") (not .Values.webConfig.secret) }}
  {{- fail "webConfig.probes is for a webConfig.secret with TLS, and there is none" }}
{{- end }}
{{- range $container := list "watch" "trust" }}
  {{- range (index $.Values $container).env }}
    {{- if regexMatch "^NODESTEAD_(HOST_ROOT|HTTP_[A-Z_]+|NAMES_WORKLOADS_PROC|TRUST_SOURCES|TRUST_RESTARTS_CONCURRENCY)$" .name }}
      {{- fail (printf "%s.env: %s: set it by config, webConfig or trust.sources: ports, mounts, capabilities and rights of the pod follow from it" $container .name) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- if dig "rollingUpdate" "maxSurge" "" (.Values.updateStrategy | default dict) }}
  {{- fail "updateStrategy.rollingUpdate.maxSurge: two pods of a node want the same ports, and the new one would never come up" }}
{{- end }}
{{- if and .Values.trust.enabled (not .Values.trust.caSecret.name) (not .Values.trust.sources) }}
  {{- fail "trust has no source: give trust.caSecret.name or trust.sources, or set trust.enabled: false" }}
{{- end }}
{{- end }}
