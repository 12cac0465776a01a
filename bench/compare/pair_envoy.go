package main

import (
	"net"
	"os"
	"strings"
)

func missingEnvoy(s *site) string {
	if _, err := s.tool("envoy"); err != nil {
		return err.Error() + ": run make setup"
	}
	return ""
}

// startEnvoy runs two Envoys with as many workers as there are processors, their default, without records, and with
// limits on streams that the measures do not reach. Windows are Envoy's own, 16 MiB a stream and 24 MiB a connection.
func startEnvoy(s *site, r *running, between func(string) (string, error)) error {
	program, err := s.tool("envoy")
	if err != nil {
		return err
	}
	exit, entry, err := twoAddrs()
	if err != nil {
		return err
	}
	add := func(role, config string, listen, to string) error {
		file := s.path("envoy-" + role + ".yaml")
		text := strings.NewReplacer("$LISTEN", envoyAddr(listen), "$TO", envoyAddr(to), "$DIR", s.dir).Replace(config)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		return r.add(s, "Envoy "+role, program, "-c", file, "--disable-hot-restart", "-l", "error")
	}
	if err := add("exit", envoyExit, exit, s.target.Addr()); err != nil {
		return err
	}
	via, err := between(exit)
	if err != nil {
		return err
	}
	r.entry = entry
	return add("entry", envoyEntry, entry, via)
}

// envoyAddr writes an address as Envoy's configuration has it.
func envoyAddr(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		panic("BUG: " + err.Error()) // it comes from proc.FreeAddr or a listener
	}
	return "{socket_address: {address: " + host + ", port_value: " + port + "}}"
}

// envoyCluster is the one place where what comes in goes to.
const envoyCluster = `
  clusters:
  - name: to
    connect_timeout: 5s
    circuit_breakers:
      thresholds:
      - {max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}
    load_assignment: {cluster_name: to, endpoints: [{lb_endpoints: [{endpoint: {address: $TO}}]}]}
`

// envoyEntry is tcp_proxy with tunneling_config: every connection becomes a CONNECT over HTTP/2.
const envoyEntry = `
static_resources:
  listeners:
  - address: $LISTEN
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: entry
          cluster: to
          tunneling_config: {hostname: "exit.bench:443"}
` + envoyCluster + `
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          tls_certificates:
          - {certificate_chain: {filename: $DIR/entry.pem}, private_key: {filename: $DIR/entry.key}}
          validation_context:
            trusted_ca: {filename: $DIR/roots.pem}
            match_typed_subject_alt_names:
            - {san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/default/sa/exit"}}
`

// envoyExit takes CONNECT over mutual TLS and connects to the target.
const envoyExit = `
static_resources:
  listeners:
  - address: $LISTEN
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2]
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates:
            - {certificate_chain: {filename: $DIR/exit.pem}, private_key: {filename: $DIR/exit.key}}
            validation_context:
              trusted_ca: {filename: $DIR/roots.pem}
              match_typed_subject_alt_names:
              - {san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/default/sa/entry"}}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: exit
          codec_type: HTTP2
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: to, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
` + envoyCluster
