{{/* The image: by digest if there is one, which then counts alone. */}}
{{- define "weft.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The settings of config.yaml. What scrapes the agents needs an address to scrape. */}}
{{- define "weft.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if and .Values.monitoring.podMonitor (not $config.metricsAddr) -}}
{{- $_ := set $config "metricsAddr" "[::]:9471" -}}
{{- end -}}
{{ toYaml $config }}
{{- end -}}

{{/* Not empty when Open vSwitch's directory is not below the node's /run, which is mounted at /host/run. */}}
{{- define "weft.ovsElsewhere" -}}
{{- $dir := .Values.config.ovsRunDir | default "/run/openvswitch" -}}
{{- if not (or (hasPrefix "/run/" $dir) (hasPrefix "/var/run/" $dir)) }}true{{ end -}}
{{- end -}}

{{/* Open vSwitch's directory in the container. */}}
{{- define "weft.ovsRunDir" -}}
{{- $dir := .Values.config.ovsRunDir | default "/run/openvswitch" -}}
{{- if include "weft.ovsElsewhere" . }}{{ $dir }}{{ else }}/host/run/{{ $dir | trimPrefix "/var" | trimPrefix "/run/" }}{{ end -}}
{{- end -}}
