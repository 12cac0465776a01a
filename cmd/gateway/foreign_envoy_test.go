package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// envoy is an Envoy that is ready.
type envoy struct {
	*process
	addr string // of its one listener
}

// startEnvoy starts Envoy with one listener, called "in", of which fill fills the gaps.
func startEnvoy(t *testing.T, config string, fill ...string) *envoy {
	t.Helper()
	dir := t.TempDir()
	file, adminFile := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin")
	config = strings.NewReplacer(fill...).Replace(config)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &envoy{process: start(t, exec.Command(program(t, "envoy"), "-c", file, "--admin-address-path", adminFile,
		"--concurrency", "1", "--disable-hot-restart", "-l", "warn"))}
	within(t, "Envoy's listener", func() error {
		if err := e.alive(); err != nil {
			t.Fatal(err)
		}
		admin, err := os.ReadFile(adminFile)
		if err == nil {
			e.addr, err = envoyReady(string(admin))
		}
		return err
	})
	return e
}

// envoyReady asks Envoy whether it has started, and which port the system gave its listener.
func envoyReady(admin string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	ready, err := client.Get("http://" + admin + "/ready")
	if err != nil {
		return "", err
	}
	_ = ready.Body.Close()
	if ready.StatusCode != http.StatusOK {
		return "", errors.New(ready.Status)
	}
	res, err := client.Get("http://" + admin + "/listeners?format=json")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var text struct {
		Statuses []struct {
			Address struct {
				Socket struct {
					Address string
					Port    int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.NewDecoder(res.Body).Decode(&text); err != nil {
		return "", err
	}
	if len(text.Statuses) != 1 || text.Statuses[0].Address.Socket.Port == 0 {
		return "", fmt.Errorf("listeners are %v, want one", text)
	}
	s := text.Statuses[0].Address.Socket
	return s.Address + ":" + strconv.Itoa(s.Port), nil
}

// envoyHead is what every Envoy here has.
const envoyHead = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
`

// envoyClient makes Envoy the CONNECT client of an exit: what comes in goes to one destination.
const envoyClient = envoyHead + `
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: in
          cluster: exit
          tunneling_config: {hostname: $TARGET, propagate_response_headers: true}
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: {text_format_source: {inline_string: "flow flags=%RESPONSE_FLAGS% answer=%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%\n"}}
  clusters:
  - name: exit
    connect_timeout: 5s
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
          - {certificate_chain: {filename: $DIR/$NAME.pem}, private_key: {filename: $DIR/$NAME.key}}
          validation_context:
            trusted_ca: {filename: $DIR/root.pem}
            match_typed_subject_alt_names:
            - {san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/default/sa/server"}}
    load_assignment:
      cluster_name: exit
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $PORT}}}
`

func (m *mesh) envoyClient(t *testing.T, name string, exit *gateway, target string) *envoy {
	t.Helper()
	return startEnvoy(t, envoyClient, "$DIR", m.dir, "$NAME", name, "$TARGET", `"`+target+`"`, "$PORT", port(exit.addr))
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// echoHalfClosed sends n bytes through a connection to an echo server, ends, and wants them back and the end.
func echoHalfClosed(t *testing.T, addr string, n int) {
	t.Helper()
	nc := dial(t, addr)
	body := random(n)
	var sent sync.WaitGroup
	sent.Go(func() { // ends when all is sent, or at the deadline; Wait below
		_, err := nc.Write(body)
		if err := errors.Join(err, nc.CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	if got, err := io.ReadAll(nc); !bytes.Equal(got, body) || err != nil {
		t.Errorf("echo after half-close = %d bytes, %v, want the %d that were sent and the end", len(got), err, n)
	}
	sent.Wait()
}

// TestForeignEnvoyClient has Envoy as the CONNECT client of our exit.
func TestForeignEnvoyClient(t *testing.T) {
	program(t, "envoy") // or nothing here makes sense
	m := newMesh(t)
	w := newWeb(t)
	exit := m.exit(t)
	t.Run("web server", func(t *testing.T) {
		e := m.envoyClient(t, "client", exit, w.addr)
		w.curlFetches(t, "http://"+e.addr)
		exit.says(t, "msg=flow", "peer="+clientID, "dst="+w.addr)
	})
	t.Run("half-close", func(t *testing.T) {
		e := m.envoyClient(t, "client", exit, serve(t, echo))
		for _, n := range []int{0, 1, 70_000, 1 << 20} {
			echoHalfClosed(t, e.addr, n)
		}
	})
	for _, tt := range []struct{ name, who, target, status, says, record string }{
		{"another namespace", "otherns", w.addr, "401", "http_request_denied", "peer=" + othernsID + " dst=" + w.addr + " rule=same-namespace reason=denied"},
		{"nothing listens", "client", freeAddr(t), "503", "connection_refused", "reason=refused"},
		{"not this host", "client", "192.0.2.1:80", "400", "http_request_error", "reason=not-local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := m.envoyClient(t, tt.who, exit, tt.target)
			nc := dial(t, e.addr)
			if got, err := io.ReadAll(nc); len(got) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("through Envoy = %q, %v, want nothing and the end", got, err)
			}
			e.says(t, "flow flags=", tt.status, tt.says)
			exit.says(t, "msg=flow", tt.record, "dst="+tt.target)
		})
	}
	exit.idle(t)
}

// envoyExit makes Envoy the CONNECT exit of an entry: peers of our namespace get where the authority says, unless RBAC
// denies it.
const envoyExit = envoyHead + `
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
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
            - {certificate_chain: {filename: $DIR/server.pem}, private_key: {filename: $DIR/server.key}}
            validation_context:
              trusted_ca: {filename: $DIR/root.pem}
              match_typed_subject_alt_names:
              - {san_type: URI, matcher: {prefix: "spiffe://cluster.local/"}}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: HTTP2
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: out, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
          http_filters:
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  namespace:
                    permissions: [{not_rule: {header: {name: ":authority", string_match: {exact: "$DENIED"}}}}]
                    principals: [{authenticated: {principal_name: {prefix: "spiffe://cluster.local/ns/default/"}}}]
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: {text_format_source: {inline_string: "stream status=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% peer=%DOWNSTREAM_PEER_URI_SAN% authority=%REQ(:authority)%\n"}}
  clusters:
  - name: out
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    original_dst_lb_config: {use_http_header: true, http_header_name: ":authority"}
    connect_timeout: 5s
`

// TestForeignEnvoyExit has Envoy as the CONNECT exit of our entry.
func TestForeignEnvoyExit(t *testing.T) {
	m := newMesh(t)
	plain, secure, denied := newWeb(t), startWeb(t, m.webTLS(t)), newWeb(t)
	e := startEnvoy(t, envoyExit, "$DIR", m.dir, "$DENIED", denied.addr)
	entry := m.socks(t, e.addr)
	x := []string{"-x", "socks5h://" + entry.addr, "--cacert", m.path("root.pem")}
	t.Run("HTTP", func(t *testing.T) { plain.curlFetches(t, "http://"+plain.addr, x...) })
	t.Run("HTTPS", func(t *testing.T) { secure.curlFetches(t, "https://"+secure.addr, x...) })
	e.says(t, "stream status=200", "peer="+clientID, "authority="+plain.addr)
	for _, tt := range []struct{ name, addr, reply, reason, status string }{
		{"RBAC denies", denied.addr, "(2)", "reason=denied", "403"},
		{"nothing listens", freeAddr(t), "(4)", "reason=unavailable", "503"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, stderr, err := try(t, "curl", "-q", "-sS", "-m", "60", "-x", "socks5h://"+entry.addr, "http://"+tt.addr+"/")
			if err == nil || !strings.Contains(stderr, tt.reply) {
				t.Errorf("curl = %v, %q, want the SOCKS reply %s", err, stderr, tt.reply)
			}
			entry.says(t, "dst="+tt.addr, tt.reason, "answered "+tt.status)
		})
	}
	t.Run("half-close", func(t *testing.T) {
		forward := m.forward(t, e.addr, serve(t, echo))
		for _, n := range []int{0, 1, 70_000, 1 << 20} {
			echoHalfClosed(t, forward.addr, n)
		}
		forward.idle(t)
	})
	t.Run("reset", func(t *testing.T) {
		ln := loopback(t)
		p := pair{entry: m.forward(t, e.addr, ln.Addr().String())}
		client, server := p.connect(t, ln)
		_, err := server.Write(make([]byte, 1000))
		_, err2 := io.ReadFull(client, make([]byte, 1000))
		if err := errors.Join(err, err2, reset(server), wantReset(client)); err != nil {
			t.Error(err)
		}
	})
	entry.idle(t)
}

// TestForeignEnvoyBothEnds has Envoy in front as ingress, which opens tunnels at our gateway, and Envoy behind as egress, which
// ends those of ours: two hops of somebody else and one of ours between, each by its own identity.
func TestForeignEnvoyBothEnds(t *testing.T) {
	m := newMesh(t)
	w, denied := newWeb(t), newWeb(t)
	gwID := m.identity(t, "default", "gw")
	egress := startEnvoy(t, envoyExit, "$DIR", m.dir, "$DENIED", denied.addr)
	gw := m.configured(t, "gw", `
listeners: [{name: mesh, kind: hbone, address: "$ADDR"}]
hops: {egress: {address: "`+egress.addr+`", identity: "`+serverID+`"}}
routes: [{via: [egress]}]
`)
	ingress := func(t *testing.T, target string) *envoy {
		return startEnvoy(t, strings.Replace(envoyClient, serverID, gwID, 1), "$DIR", m.dir, "$NAME", "client", "$TARGET", `"`+target+`"`, "$PORT", port(gw.addr))
	}
	t.Run("web server", func(t *testing.T) {
		w.curlFetches(t, "http://"+ingress(t, w.addr).addr)
		gw.says(t, "msg=flow", "peer="+clientID, "dst="+w.addr, "hop=egress", "hop_id="+serverID)
		egress.says(t, "stream status=200", "peer="+gwID, "authority="+w.addr)
	})
	t.Run("half-close", func(t *testing.T) {
		in := ingress(t, serve(t, echo))
		for _, n := range []int{0, 1, 70_000, 1 << 20} {
			echoHalfClosed(t, in.addr, n)
		}
	})
	t.Run("refused behind", func(t *testing.T) {
		in := ingress(t, denied.addr)
		nc := dial(t, in.addr)
		if got, err := io.ReadAll(nc); len(got) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("through Envoy = %q, %v, want nothing and the end", got, err)
		}
		in.says(t, "flow flags=", "401", "received-status=403")
		gw.says(t, "msg=flow", "dst="+denied.addr, "reason=denied", "by=egress", "hop_id="+serverID)
	})
	gw.idle(t)
}

// TestForeignEnvoyBetween has a chain lead through Envoy: it ends the outer CONNECT and passes on what it cannot read.
func TestForeignEnvoyBetween(t *testing.T) {
	m := newMesh(t)
	farID := m.identity(t, "default", "far")
	far := m.gateway(t, "far", "--hbone", "$ADDR")
	between := startEnvoy(t, envoyExit, "$DIR", m.dir, "$DENIED", "none")
	w := newWeb(t)
	entry := m.forward(t, between.addr+","+far.addr, w.addr)
	w.curlFetches(t, "http://"+entry.addr)
	echoHalfClosed(t, m.forward(t, between.addr+","+far.addr, serve(t, echo)).addr, 70_000)
	entry.says(t, "msg=flow", "hop="+between.addr+","+far.addr, "hop_id="+farID)
	far.says(t, "msg=flow", "peer="+clientID, "dst="+w.addr)
	entry.kill() // Envoy tells of a stream when it has ended
	between.says(t, "stream", "peer="+clientID, "authority="+far.addr)
}

// TestForeignEnvoyWaypoint has Envoy say what it is, as Istio's waypoint does: our gateway leads its flows past the waypoint, and
// those of others who say the same to it.
func TestForeignEnvoyWaypoint(t *testing.T) {
	m := newMesh(t)
	waypointID := m.identity(t, "default", "waypoint")
	past, to := newWeb(t), serve(t, func(nc *net.TCPConn) { _, _ = io.WriteString(nc, "to the waypoint\n") })
	ew := m.configured(t, "server", `
listeners: [{name: mesh, kind: hbone, address: "$ADDR"}]
trustHeaders: ["`+strings.TrimPrefix(waypointID, "spiffe://")+`"]
routes:
- {destinations: ["`+past.addr+`"], istioSource: [waypoint]}
- {destinations: ["`+past.addr+`"], inner: pass, innerPort: `+port(to)+`}
`)
	says := `"` + past.addr + `", headers_to_add: [{header: {key: x-istio-source, value: waypoint}}]`
	waypoint := startEnvoy(t, envoyClient, "$DIR", m.dir, "$NAME", "waypoint", "$TARGET", says, "$PORT", port(ew.addr))
	past.curlFetches(t, "http://"+waypoint.addr)
	forged := startEnvoy(t, envoyClient, "$DIR", m.dir, "$NAME", "client", "$TARGET", says, "$PORT", port(ew.addr))
	if got, err := io.ReadAll(dial(t, forged.addr)); string(got) != "to the waypoint\n" || err != nil {
		t.Errorf("who says falsely to be a waypoint gets %q, %v, want to be led to it", got, err)
	}
}
