{{- define "weir.notes" -}}
{{- $clients := include "weir.clients" . -}}
{{- $ns := .Release.Namespace -}}
Weir is in namespace {{ $ns }}. Next:

  1. kubectl -n {{ $ns }} rollout status deployment/weir-xds deployment/weir-picker{{ if .Values.envoy.enabled }} deployment/weir-envoy{{ end }}
{{- if .Values.envoy.enabled }}
  2. kubectl -n {{ $ns }} port-forward service/weir-envoy 8080:{{ .Values.envoy.service.port }} &
     curl 127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \
       -d '{"model": "MODEL", "messages": [{"role": "user", "content": "hello"}]}'
     With several InferencePools, each is the host POOL.NAMESPACE.
{{- else }}
  2. weir istio manifests NAMESPACE/POOL --kubernetes \
       --xds-address weir-xds.{{ $ns }}.svc.{{ .Values.istio.domain }}:{{ include "weir.xdsPort" . }} \
       --picker weir-picker.{{ $ns }}.svc.{{ .Values.istio.domain }}:9002 > pool.yaml
     This prints what wires your pool; read it, keep it in your repository, apply it step by step:
     docs/istio.md.
{{- end }}
  3. kubectl -n {{ $ns }} exec deployment/weir-xds -- weir status --status 127.0.0.1:15014
     It works when every proxy is SYNCED and loads are seconds old. A proxy is connected to one
     replica: ask the other, too. `helm -n {{ $ns }} test {{ .Release.Name }}` asks in a script's way.
{{ if eq $clients "plaintext" }}
The xDS port is plaintext: whoever the NetworkPolicy lets in sees every pool. This needs a network
plugin that enforces NetworkPolicies.
{{ end }}
{{- if and (ne $clients "plaintext") (not .Values.security.certManager.enabled) }}
Pods wait for what you bring: the Secret {{ .Values.security.secretName }}{{ if eq $clients "certificates" }} and {{ .Values.security.pickerSecretName }}{{ end }} (tls.crt, tls.key, ca.crt).
{{ end }}
{{- $scrapes := .Values.meshScraping }}
{{- if and $scrapes.enabled (or $scrapes.secretName (and (eq $clients "plaintext") (not .Values.security.certManager.enabled))) }}
weir-xds waits for the Secret {{ include "weir.meshSecret" . }} (tls.crt, tls.key, ca.crt), to scrape with.
{{ end }}
{{- if ne $clients "plaintext" }}
A proxy sees the pools of its own namespace; a gateway elsewhere needs a row in security.grants.
{{ end }}
{{- if .Values.controller.manageEnvoyFilters }}
WARNING: controller.manageEnvoyFilters lets Weir write EnvoyFilters {{ if .Values.namespaces }}in {{ join ", " .Values.namespaces }}{{ else }}in every namespace, istiod's included{{ end }}.
Who can write an EnvoyFilter can rewrite any proxy there{{ if not .Values.namespaces }}, and in istiod's namespace any proxy of the mesh{{ end }}. Set `namespaces` to bound it.
Instead of step 2: kubectl -n NAMESPACE annotate inferencepool POOL weir.dev/shape=auto; see docs/controller.md.
{{ end }}
{{- if and .Values.istio.enabled (not .Values.authorizationPolicy.enabled) .Values.picker.captured }}
Any workload of the mesh can ask the picker; authorizationPolicy.principals narrows that.
{{ end }}
To undo: delete the EnvoyFilters first, then `helm -n {{ $ns }} uninstall {{ .Release.Name }}`; see docs/install.md.
{{- end -}}
