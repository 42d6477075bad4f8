{{/* The one choice that has no default: how clients of the xDS port prove who they are. */}}
{{- define "weir.clients" -}}
{{- $clients := .Values.security.clients -}}
{{- if not $clients -}}
{{- fail (print "\n\nsecurity.clients: say how proxies prove who they are to Weir's xDS port:\n" "  --set security.clients=certificates   mesh certificates; needs the Secrets, or security.certManager.enabled=true\n" "  --set security.clients=tokens         service account tokens, checked by TokenReview; needs the Secret with our certificate\n" "  --set security.clients=plaintext      nothing: whoever the NetworkPolicy lets in sees every pool\n") -}}
{{- end -}}
{{- if and (eq $clients "plaintext") (not .Values.networkPolicy.enabled) -}}
{{- fail "\n\nsecurity.clients=plaintext with networkPolicy.enabled=false would show every pool to every Pod of the cluster; leave networkPolicy.enabled=true" -}}
{{- end -}}
{{- if and .Values.envoy.enabled (ne $clients "plaintext") -}}
{{- fail "\n\nenvoy.enabled=true: `weir envoy-bootstrap` speaks plaintext to the xDS port; set security.clients=plaintext (the NetworkPolicy lets in our own Pods)" -}}
{{- end -}}
{{- if and .Values.envoy.enabled .Values.istio.enabled -}}
{{- fail "\n\nenvoy.enabled=true is an installation without Istio: set istio.enabled=false" -}}
{{- end -}}
{{- if and .Values.controller.manageEnvoyFilters (not .Values.istio.enabled) -}}
{{- fail "\n\ncontroller.manageEnvoyFilters=true needs istio.enabled=true" -}}
{{- end -}}
{{- if and .Values.authorizationPolicy.enabled (not (and .Values.istio.enabled .Values.picker.captured)) -}}
{{- fail "\n\nauthorizationPolicy.enabled=true: only ztunnel enforces it, so it needs istio.enabled=true and picker.captured=true" -}}
{{- end -}}
{{- if and .Values.meshScraping.enabled (not .Values.istio.enabled) -}}
{{- fail "\n\nmeshScraping.enabled=true scrapes what ztunnel captured, so it needs istio.enabled=true" -}}
{{- end -}}
{{- if and .Values.picker.tls.enabled (not (and .Values.istio.enabled (eq $clients "certificates"))) -}}
{{- fail "\n\npicker.tls.enabled=true: proxies and picker show mesh certificates, so it needs istio.enabled=true and security.clients=certificates" -}}
{{- end -}}
{{- if and .Values.picker.tls.enabled .Values.picker.captured -}}
{{- fail "\n\npicker.tls.enabled=true with picker.captured=true: ztunnel gives the picker mutual TLS already (authorizationPolicy says who may ask); set picker.captured=false" -}}
{{- end -}}
{{- $clients -}}
{{- end -}}

{{/* Where the scraper's mesh certificate comes from, and whether the xDS port has it already. */}}
{{- define "weir.meshSecret" -}}
{{- .Values.meshScraping.secretName | default .Values.security.secretName -}}
{{- end -}}

{{- define "weir.meshDirectory" -}}
{{- $mounted := ne (include "weir.clients" .) "plaintext" -}}
/var/run/secrets/weir/{{ ternary "tls" "mesh" (and $mounted (eq (include "weir.meshSecret" .) .Values.security.secretName)) }}
{{- end -}}

{{- define "weir.xdsPort" -}}
{{- if eq (include "weir.clients" .) "plaintext" }}15010{{ else }}15012{{ end -}}
{{- end -}}

{{- define "weir.image" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end -}}

{{- define "weir.ourImage" -}}
{{- $image := .Values.image -}}
{{- include "weir.image" (dict "repository" $image.repository "digest" $image.digest "tag" ($image.tag | default .Chart.AppVersion)) -}}
{{- end -}}

{{/* Labels of an object; takes (list $ "weir-xds"). */}}
{{- define "weir.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/part-of: weir
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end -}}

{{/* What a Pod and its one container may do: Pod Security "restricted", and a read-only root. */}}
{{- define "weir.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "weir.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{/* Where Pods go; and how they get their image; takes (list $values "weir-xds" $pullSecrets). */}}
{{- define "weir.placement" -}}
{{- $values := index . 0 -}}
topologySpreadConstraints:
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {app.kubernetes.io/name: {{ index $ 1 }}}
{{- end }}
{{- with (index . 2) }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* A selector of these namespaces; of all, where there are none. */}}
{{- define "weir.namespaces" -}}
{{- if . -}}
matchExpressions:
  - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/*
The proxies that may connect, as peers of a NetworkPolicy. istiod puts these labels on the Pods of
the Gateways that it deploys; a proxy deployed by hand needs them too.
*/}}
{{- define "weir.proxies" -}}
{{- if .Values.envoy.enabled }}
- podSelector:
    matchLabels: {app.kubernetes.io/name: weir-envoy}
{{- end }}
{{- if and .Values.istio.enabled .Values.istio.proxies }}
- namespaceSelector: {{- include "weir.namespaces" .Values.networkPolicy.proxyNamespaces | nindent 4 }}
  podSelector:
    matchExpressions:
      - key: gateway.istio.io/managed
        operator: In
        values:
          {{- if has "gateway" .Values.istio.proxies }}
          - istio.io-gateway-controller
          {{- end }}
          {{- if has "waypoint" .Values.istio.proxies }}
          - istio.io-mesh-controller
          {{- end }}
{{- end }}
{{- end -}}

{{- define "weir.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{/* An Envoy that knows nothing but where Weir is. */}}
{{- define "weir.bootstrap" -}}
# As `weir envoy-bootstrap --xds weir-xds.{{ .Release.Namespace }}.svc:15010 --node weir-envoy` prints it.
node:
  id: weir-envoy
  cluster: weir
admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: 19000}
static_resources:
  clusters:
    - name: weir-xds
      type: STRICT_DNS
      connect_timeout: 1s
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options:
              connection_keepalive: {interval: 5s, timeout: 3s}
      load_assignment:
        cluster_name: weir-xds
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address:
                      address: weir-xds.{{ .Release.Namespace }}.svc
                      port_value: 15010
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services:
      - envoy_grpc:
          cluster_name: weir-xds
          retry_policy: {retry_back_off: {base_interval: 0.25s, max_interval: 2s}}
    set_node_on_first_message_only: true
  cds_config: {resource_api_version: V3, ads: {}}
  lds_config: {resource_api_version: V3, ads: {}}
cluster_manager:
  load_stats_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services:
      - envoy_grpc:
          cluster_name: weir-xds
          retry_policy: {retry_back_off: {base_interval: 0.25s, max_interval: 2s}}
{{- end -}}

{{/* What `weir serve --kubernetes` may do; docs/install.md has the table. */}}
{{- define "weir.reads" }}
rules:
  - apiGroups: [""]
    resources: [pods, services{{ if not .Values.namespaces }}, nodes{{ end }}]
    verbs: [get, list, watch]
  - apiGroups: [inference.networking.k8s.io]
    resources: [inferencepools]
    verbs: [get, list, watch]
  - apiGroups: [inference.networking.x-k8s.io]
    resources: [inferencepools, inferenceobjectives, inferencemodelrewrites, inferencemodels]
    verbs: [get, list, watch]
  - apiGroups: [llm-d.ai]
    resources: [inferenceobjectives, inferencemodelrewrites]
    verbs: [get, list, watch]
  - apiGroups: [gateway.networking.k8s.io]
    resources: [gateways, httproutes]
    verbs: [get, list, watch]
  {{- if .Values.controller.writeStatus }}
  - apiGroups: [inference.networking.k8s.io]
    resources: [inferencepools/status]
    verbs: [patch]
  - apiGroups: [""]
    resources: [events]
    verbs: [get, create, patch]
  {{- end }}
{{- end }}

{{- define "weir.istio" }}
rules:
  - apiGroups: [security.istio.io]
    resources: [peerauthentications]
    verbs: [get, list, watch]
{{- end }}

{{- define "weir.envoyfilters" }}
rules:
  - apiGroups: [networking.istio.io]
    resources: [envoyfilters]
    verbs: [get, list, watch, create, update, patch, delete]
  - apiGroups: [networking.istio.io]
    resources: [destinationrules, virtualservices]
    verbs: [get, list, watch]
  {{- if not .Values.namespaces }}
  # These have no namespace, and no Role can give them.
  - apiGroups: [""]
    resources: [namespaces]
    verbs: [get, list, watch]
  - apiGroups: [gateway.networking.k8s.io]
    resources: [gatewayclasses]
    verbs: [get, list, watch]
  {{- end }}
{{- end }}
