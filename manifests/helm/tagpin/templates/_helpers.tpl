{{/*
The labels of every object; `app.kubernetes.io/component` stands with each.
*/}}
{{- define "tagpin.labels" -}}
app.kubernetes.io/name: tagpin
app.kubernetes.io/part-of: tagpin
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
The labels that select the replicas. They can never change: a Deployment's selector is immutable.
*/}}
{{- define "tagpin.selector" -}}
app.kubernetes.io/name: tagpin
app.kubernetes.io/component: webhook
{{- end }}

{{/*
The image, by its digest where there is one.
*/}}
{{- define "tagpin.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest -}}
{{ $image.repository }}{{ with $image.tag }}:{{ . }}{{ end }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{/*
The files in /etc/tagpin.
*/}}
{{- define "tagpin.files" -}}
config.yaml: |
  {{- toYaml .Values.settings | nindent 2 }}
exempt: {{ join "\n" .Values.exempt | quote }}
{{- range $name, $content := .Values.caFiles }}
{{ $name }}: |
  {{- $content | nindent 2 }}
{{- end }}
{{- end }}
