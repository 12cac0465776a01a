package deploy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificates makes what the files here name in /etc/culvert, of an identity, and returns the folder.
func certificates(t *testing.T, id string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "sh", "-c", "cd "+dir+" && "+built(t)+" cert ca ca && "+built(t)+" cert issue "+id+" --name shop.example --name localhost"+
		" && mv "+filepath.Base(id)+".pem tls.crt && mv "+filepath.Base(id)+".key tls.key && cp ca/ca.pem ca.crt")
	return dir
}

func TestForeignEnvoyTakesItsFiles(t *testing.T) {
	for _, file := range []string{"envoy-entry.yaml", "envoy-exit.yaml"} {
		t.Run(file, func(t *testing.T) {
			dir := certificates(t, "spiffe://cluster.local/ns/mesh/sa/envoy")
			config := write(t, filepath.Join(dir, file), strings.ReplaceAll(read(t, "beside/"+file), "/etc/culvert/", dir+"/"), 0o600)
			if out, err := try(t, program(t, "envoy"), "--mode", "validate", "-l", "warn", "-c", config); err != nil || !strings.Contains(out, "OK") || strings.Contains(out, "eprecat") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestForeignHAProxyTakesItsFiles(t *testing.T) {
	for _, file := range []string{"haproxy-pass.cfg", "haproxy-proxy.cfg"} {
		t.Run(file, func(t *testing.T) {
			if out, err := try(t, program(t, "haproxy"), "-c", "-V", "-f", "beside/"+file); err != nil || strings.Contains(out, "WARNING") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// startHAProxy runs HAProxy, with its frontends, until the test ends.
func startHAProxy(t *testing.T, config string, fronts ...string) {
	t.Helper()
	cmd := exec.Command(program(t, "haproxy"), "-db", "-f", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	for _, front := range fronts {
		up(t, front)
	}
}

// Through HAProxy the ends know each other, and its check sees whether a gateway is ready.
func TestForeignHAProxyPassesTunnels(t *testing.T) {
	dir := certificates(t, "spiffe://cluster.local/ns/mesh/sa/east")
	identity := strings.ReplaceAll("identity: {cert: DIR/tls.crt, key: DIR/tls.key, roots: DIR/ca.crt}\n", "DIR", dir)
	mesh, front := freeAddress(t), freeAddress(t)
	admin := running(t, identity+"listeners: [{name: mesh, kind: hbone, address: \""+mesh+"\"}]\nroutes: [{destinations: [local]}]")
	_, adminPort, _ := strings.Cut(admin, ":")
	config := strings.NewReplacer(":15008\n    default", front+"\n    default", "10.0.0.11:15008", mesh, "port 15000", "port "+adminPort,
		"    server two 10.0.0.12:15008 check port 15000\n", "").Replace(read(t, "beside/haproxy-pass.cfg"))
	startHAProxy(t, write(t, filepath.Join(dir, "haproxy.cfg"), config, 0o600), front)
	out := run(t, built(t), "ping", "--cert", dir+"/tls.crt", "--key", dir+"/tls.key", "--roots", dir+"/ca.crt", front)
	if !strings.Contains(out, "spiffe://cluster.local/ns/mesh/sa/east") {
		t.Errorf("ping says %s", out)
	}
}

// An ingress behind HAProxy learns from the PROXY protocol who the client is, of plain HTTP and of TLS that HAProxy does not open.
func TestForeignHAProxySaysWhoComes(t *testing.T) {
	dir := certificates(t, "spiffe://cluster.local/ns/mesh/sa/edge")
	plain, tlsAt, frontPlain, frontTLS := freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	_, said := runningSaying(t, strings.NewReplacer("DIR", dir, "PLAIN", plain, "TLS", tlsAt).Replace(`
identity: {cert: DIR/tls.crt, key: DIR/tls.key, roots: DIR/ca.crt}
listeners:
- {name: plain, kind: ingress, address: "PLAIN", ingress: {protocols: [http], proxyProtocol: ["127.0.0.1/32"]}}
- {name: edge, kind: ingress, address: "TLS", ingress: {protocols: [tls], proxyProtocol: ["127.0.0.1/32"], certificates: [{cert: DIR/tls.crt, key: DIR/tls.key}]}}
routes:
- {hosts: ["*"], from: any, http: {redirect: {scheme: https, host: elsewhere.example, status: 308}}}
`))
	config := strings.NewReplacer("bind :80", "bind "+frontPlain, "bind :443", "bind "+frontTLS, "10.0.0.21:80", plain, "10.0.0.21:443", tlsAt,
		"    server two 10.0.0.22:80 send-proxy-v2 check\n", "", "    server two 10.0.0.22:443 send-proxy-v2 check\n", "").Replace(read(t, "beside/haproxy-proxy.cfg"))
	startHAProxy(t, write(t, filepath.Join(dir, "haproxy.cfg"), config, 0o600), frontPlain, frontTLS)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(read(t, dir+"/ca.crt"))) {
		t.Fatal("no root")
	}
	for url, front := range map[string]string{"http://shop.example/x": frontPlain, "https://shop.example/x": frontTLS} {
		var from string
		client := http.Client{
			Timeout:       patience,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, front)
				if err == nil {
					from = nc.LocalAddr().String()
				}
				return nc, err
			}},
		}
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusPermanentRedirect || got != "https://elsewhere.example/x" {
			t.Errorf("%s = %d to %q", url, resp.StatusCode, got)
		}
		for end := time.Now().Add(patience); !strings.Contains(said(), "src="+from); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no record of %s says src=%s", url, from)
			}
		}
	}
}
