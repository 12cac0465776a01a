package main_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// pageText is what GET / of a web server answers.
const pageText = "through the tunnel\n"

// bulkBytes is the size of /down and of what is sent to /up.
const bulkBytes = 10 << 20

// web is a web server of net/http: / is a page, /down is bulk, /up answers the digest of what it gets, /echo sends it
// back.
type web struct {
	addr string // host:port
	port string
	bulk []byte
}

func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func newWeb(t *testing.T) *web { return startWeb(t, nil) }

// startWeb starts a web server, with TLS if conf is not nil.
func startWeb(t *testing.T, conf *tls.Config) *web {
	t.Helper()
	w := &web{bulk: random(bulkBytes)}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, pageText) })
	mux.HandleFunc("/down", func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(w.bulk) })
	mux.HandleFunc("/up", func(rw http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(rw, digest(b))
	})
	mux.HandleFunc("/echo", func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex() // HTTP/2 has it anyway
		if _, err := io.Copy(rw, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	})
	srv := httptest.NewUnstartedServer(mux)
	if srv.EnableHTTP2 = conf != nil; conf != nil {
		srv.TLS = conf
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	w.addr = srv.Listener.Addr().String()
	_, w.port, _ = net.SplitHostPort(w.addr)
	return w
}

// webTLS makes a certificate for localhost, as a web server behind the mesh has one.
func (m *mesh) webTLS(t *testing.T) *tls.Config {
	t.Helper()
	m.issue(t, "web", &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	return &tls.Config{Certificates: []tls.Certificate{m.certificate(t, "web")}}
}

// curlFetches gets the page and the bulk of a web server and sends the bulk to it, all with the same options of curl.
func (w *web) curlFetches(t *testing.T, base string, options ...string) {
	t.Helper()
	dir := t.TempDir()
	up, down := filepath.Join(dir, "up"), filepath.Join(dir, "down")
	if err := os.WriteFile(up, w.bulk, 0o600); err != nil {
		t.Fatal(err)
	}
	curl := func(args ...string) string {
		return run(t, "curl", append(append([]string{"-q", "-sS", "-f", "-m", "60"}, options...), args...)...)
	}
	if got := curl(base + "/"); got != pageText {
		t.Errorf("GET / = %q, want %q", got, pageText)
	}
	curl("-o", down, base+"/down")
	if got, err := os.ReadFile(down); !bytes.Equal(got, w.bulk) {
		t.Errorf("GET /down = %d bytes, digest %s, %v, want %d, %s", len(got), digest(got), err, len(w.bulk), digest(w.bulk))
	}
	if got, want := curl("-T", up, base+"/up"), digest(w.bulk); got != want {
		t.Errorf("digest of %d bytes sent up = %s, want %s", len(w.bulk), got, want)
	}
}

func TestForeignCurl(t *testing.T) {
	m := newMesh(t)
	plain, secure := newWeb(t), startWeb(t, m.webTLS(t))
	exit := m.exit(t, "--egress", "localhost:"+plain.port, "--egress", "localhost:"+secure.port)
	entry := m.socks(t, exit.addr)
	for _, tt := range []struct {
		name, way, base string
		web             *web
	}{
		{"name resolved at the exit, HTTP", "socks5h", "http://localhost:" + plain.port, plain},
		{"name resolved at the exit, HTTPS", "socks5h", "https://localhost:" + secure.port, secure},
		{"address, HTTP", "socks5", "http://" + plain.addr, plain},
		{"address, HTTPS", "socks5", "https://" + secure.addr, secure},
		{"address by socks5h, HTTP", "socks5h", "http://" + plain.addr, plain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.web.curlFetches(t, tt.base, "-x", tt.way+"://"+entry.addr, "--cacert", m.path("root.pem"))
		})
	}
	for _, tt := range []struct{ name, url, reply string }{
		{"a name without a route", "http://web.example.test/", "(2)"},
		{"nothing listens", "http://" + freeAddr(t) + "/", "(5)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, stderr, err := try(t, "curl", "-q", "-sS", "-m", "60", "-x", "socks5h://"+entry.addr, tt.url)
			var ended *exec.ExitError
			if !errors.As(err, &ended) || ended.ExitCode() != 97 || !strings.Contains(stderr, tt.reply) {
				t.Errorf("curl %s = %v, %q, want exit code 97 and the SOCKS reply %s", tt.url, err, stderr, tt.reply)
			}
		})
	}
	entry.idle(t)
	exit.idle(t)
}

func TestForeignNghttp(t *testing.T) {
	m := newMesh(t)
	bulk := random(5 << 20)
	docs := t.TempDir()
	for name, text := range map[string][]byte{"page": []byte(pageText), "bulk": bulk} {
		if err := os.WriteFile(filepath.Join(docs, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	behind := freeAddr(t)
	_, port, _ := net.SplitHostPort(behind)
	server := start(t, exec.Command(program(t, "nghttpd"), "--no-tls", "-a", "127.0.0.1", "-d", docs, port))
	within(t, "nghttpd", func() error {
		nc, err := net.Dial("tcp", behind)
		if err == nil {
			_ = nc.Close()
		}
		if ended := server.alive(); ended != nil {
			t.Fatal(ended)
		}
		return err
	})
	entry := m.forward(t, m.exit(t).addr, behind)
	if got := run(t, "nghttp", "http://"+entry.addr+"/page"); got != pageText {
		t.Errorf("nghttp /page = %q, want %q", got, pageText)
	}
	if got := run(t, "nghttp", "http://"+entry.addr+"/bulk"); digest([]byte(got)) != digest(bulk) {
		t.Errorf("nghttp /bulk = %d bytes, digest %s, want %d, %s", len(got), digest([]byte(got)), len(bulk), digest(bulk))
	}
	out := run(t, "h2load", "-n", "2000", "-c", "4", "-m", "50", "http://"+entry.addr+"/page")
	if !strings.Contains(out, "2000 succeeded, 0 failed, 0 errored") {
		t.Errorf("h2load:\n%s", out)
	}
	entry.idle(t)
}
