{{/* Name of everything in this release. */}}
{{- define "caddy-cache.fullname" -}}
{{- if contains "caddy" .Release.Name -}}
{{- printf "%s-operator" (trunc 40 .Release.Name | trimSuffix "-") -}}
{{- else -}}
{{- printf "%s-caddy-operator" (trunc 40 .Release.Name | trimSuffix "-") -}}
{{- end -}}
{{- end }}

{{- define "caddy-cache.selector" -}}
app.kubernetes.io/name: caddy-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "caddy-cache.labels" -}}
{{ include "caddy-cache.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: caddy-cache
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "caddy-cache.image" -}}
{{- $help := "\n\nimage.repository is needed: the chart has no default image.\n  1. cargo xtask image                          makes an image with the operator and the sidecar\n  2. push it to a registry that your nodes pull from\n  3. helm install … --set image.repository=registry.example/team/caddy-cache [--set image.tag=…]\n" -}}
{{- printf "%s:%v" (required $help .Values.image.repository) (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end }}

{{- define "caddy-cache.caSecret" -}}
{{ include "caddy-cache.fullname" . }}-ca
{{- end }}
