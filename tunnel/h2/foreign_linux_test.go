package h2_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// program returns the path of a program that a test needs; `make setup` installs them all.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run `make setup`", name)
	}
	return path
}

// serve accepts connections and gives them to the server role until the test ends.
func serve(t testing.TB, tlsCfg *tls.Config, cfg *h2.Config) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[*h2.Conn]bool{}
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			if tlsCfg != nil {
				nc = tls.Server(nc, tlsCfg)
			}
			c, err := h2.NewServer(nc, cfg)
			if err != nil {
				nc.Close()
				continue
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
		for c := range conns {
			c.Close()
		}
	})
	return ln.Addr().String()
}

// freeAddr returns a loopback address that was free a moment ago.
func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// startProgram runs a server program until the test ends and waits until addr takes connections.
func startProgram(t testing.TB, addr, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(program(t, name), args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said: %s", name, out.String())
		}
	})
	for end := time.Now().Add(20 * time.Second); ; {
		nc, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			nc.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not listen on %s: %v", name, addr, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

// run runs a program to its end.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// echoHandler answers GET with a page, POST with the body and its length as a trailer.
func echoHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Bytes")
		w.Header().Set("X-Seen-Host", r.Host)
		if r.Method != http.MethodPost {
			io.WriteString(w, "a page of culvert\n")
			return
		}
		n, err := io.Copy(w, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Bytes", fmt.Sprint(n))
	})
}

var h2specResult = regexp.MustCompile(`(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed`)

// TestH2spec runs the conformance suite against the Handler adapter, over TLS without a client
// certificate.
func TestH2spec(t *testing.T) {
	tlsCfg, _, _ := selfSigned(t, t.TempDir())
	addr := serve(t, tlsCfg, &h2.Config{Handler: h2.HTTPHandler(echoHandler()), MaxFrameBytes: 16384})
	_, port, _ := net.SplitHostPort(addr)
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"normal", "145", nil},
		{"strict", "146", []string{"--strict"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"-h", "127.0.0.1", "-p", port, "-t", "-k", "-o", "5"}, c.args...)
			out := run(t, "h2spec", args...)
			m := h2specResult.FindStringSubmatch(out)
			if m == nil || m[1] != c.want || m[2] != c.want {
				t.Errorf("%v, want %s passed\n%s", m, c.want, out)
			}
		})
	}
}

func TestForeignCurl(t *testing.T) {
	dir := t.TempDir()
	tlsCfg, cert, _ := selfSigned(t, dir)
	addr := serve(t, tlsCfg, &h2.Config{Handler: h2.HTTPHandler(echoHandler())})
	if got := run(t, "curl", "-sS", "--http2", "--cacert", cert, "https://"+addr+"/"); got != "a page of culvert\n" {
		t.Errorf("GET: %q", got)
	}
	body := filepath.Join(dir, "body")
	data := make([]byte, 5<<20)
	rand.Read(data)
	os.WriteFile(body, data, 0o600)
	out := filepath.Join(dir, "out")
	run(t, "curl", "-sS", "--http2", "--cacert", cert, "--data-binary", "@"+body, "-o", out, "https://"+addr+"/")
	if got, _ := os.ReadFile(out); !bytes.Equal(got, data) {
		t.Errorf("POST of %d bytes came back as %d", len(data), len(got))
	}
	plain := serve(t, nil, &h2.Config{Handler: h2.HTTPHandler(echoHandler())})
	if got := run(t, "curl", "-sS", "--http2-prior-knowledge", "http://"+plain+"/"); got != "a page of culvert\n" {
		t.Errorf("GET with prior knowledge: %q", got)
	}
}

func TestForeignNghttp(t *testing.T) {
	push := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			if err := w.(http.Pusher).Push("/style.css", nil); err != nil {
				t.Errorf("Push = %v", err)
			}
		}
		io.WriteString(w, "body of "+r.URL.Path+"\n")
	})
	addr := serve(t, nil, &h2.Config{Handler: h2.HTTPHandler(push)})
	out := run(t, "nghttp", "-v", "http://"+addr+"/")
	for _, want := range []string{"body of /\n", "body of /style.css\n", "recv PUSH_PROMISE frame"} {
		if !strings.Contains(out, want) {
			t.Errorf("nghttp does not show %q:\n%s", want, out)
		}
	}
	if out := run(t, "h2load", "-n", "2000", "-c", "4", "-m", "50", "http://"+addr+"/x"); !strings.Contains(out, "2000 succeeded, 0 failed, 0 errored") {
		t.Errorf("h2load:\n%s", out)
	}
}

// frontAndBehind checks a proxy in front of our server, asked by curl, and behind our client.
func frontAndBehind(t *testing.T, start func(t *testing.T, listen, backend string)) {
	backend := serve(t, nil, &h2.Config{Handler: h2.HTTPHandler(echoHandler())})
	listen := freeAddr(t)
	start(t, listen, backend)
	body := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	file := filepath.Join(t.TempDir(), "body")
	os.WriteFile(file, []byte(body), 0o600)
	if got := run(t, "curl", "-sS", "--http2-prior-knowledge", "--data-binary", "@"+file, "http://"+listen+"/"); got != body {
		t.Errorf("curl through the proxy to our server: %d bytes, want %d", len(got), len(body))
	}
	nc, err := net.Dial("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	c, err := h2.NewClient(nc, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			req, _ := http.NewRequest(http.MethodPost, "http://"+listen+"/", strings.NewReader(body))
			resp, err := c.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != body {
				t.Errorf("our client through the proxy: %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func TestForeignNghttpx(t *testing.T) {
	frontAndBehind(t, func(t *testing.T, listen, backend string) {
		startProgram(t, listen, "nghttpx", "--conf=/dev/null", "-f"+strings.ReplaceAll(listen, ":", ",")+";no-tls",
			"-b"+strings.ReplaceAll(backend, ":", ",")+";;proto=h2", "--workers=1", "--errorlog-file=/dev/stderr", "--accesslog-file=/dev/null")
	})
}

func TestForeignEnvoy(t *testing.T) {
	frontAndBehind(t, func(t *testing.T, listen, backend string) {
		conf := filepath.Join(t.TempDir(), "envoy.yaml")
		lh, lp, _ := net.SplitHostPort(listen)
		bh, bp, _ := net.SplitHostPort(backend)
		os.WriteFile(conf, fmt.Appendf(nil, envoyConfig, lh, lp, bh, bp), 0o600)
		startProgram(t, listen, "envoy", "-c", conf, "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn")
	})
}

const envoyConfig = `
static_resources:
  listeners:
  - address: {socket_address: {address: %s, port_value: %s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: HTTP2
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: out}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: out
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: out
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: %s, port_value: %s}}}
`

func TestForeignNode(t *testing.T) {
	addr := serve(t, nil, &h2.Config{Handler: h2.HTTPHandler(echoHandler())})
	out := run(t, "node", "-e", nodeClient, addr)
	if out != "200 1048576 1048576\n" {
		t.Errorf("Node's client: %q, want status, bytes and the trailer", out)
	}
	listen := freeAddr(t)
	startProgram(t, listen, "node", "-e", nodeServer, listen)
	nc, err := net.Dial("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	pushed := make(chan string, 1)
	c, err := h2.NewClient(nc, &h2.Config{EnablePush: true, OnPush: func(_ *h2.Stream, promise *h2.Header, p *h2.Stream) {
		go func() {
			defer p.Close()
			b, err := io.ReadAll(p)
			pushed <- fmt.Sprintf("%s %s %v", promise.Path, b, err)
		}()
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body := strings.Repeat("x", 1<<20)
	req, _ := http.NewRequest(http.MethodPost, "http://"+listen+"/", strings.NewReader(body))
	resp, err := c.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != body || resp.Trailer.Get("X-Bytes") != "1048576" {
		t.Errorf("Node's server: %d bytes, trailer %v, %v", len(got), resp.Trailer, err)
	}
	if got := <-pushed; got != "/pushed hello <nil>" {
		t.Errorf("Node pushed %q", got)
	}
}

const nodeClient = `
const h = require('http2'), s = h.connect('http://' + process.argv[1]);
const r = s.request({':method': 'POST', ':path': '/'});
let n = 0, status, trailer;
r.on('response', x => status = x[':status']);
r.on('trailers', x => trailer = x['x-bytes']);
r.on('data', d => n += d.length);
r.on('end', () => { console.log(status, n, trailer); s.close(); });
r.end('y'.repeat(1 << 20));`

const nodeServer = `
const h = require('http2'), [host, port] = process.argv[1].split(':');
h.createServer().on('stream', s => {
  let n = 0;
  s.pushStream({':path': '/pushed'}, (err, p) => { if (!err) { p.respond(); p.end('hello'); } });
  s.respond({':status': 200}, {waitForTrailers: true});
  s.on('wantTrailers', () => s.sendTrailers({'x-bytes': String(n)}));
  s.on('data', d => { n += d.length; s.write(d); });
  s.on('end', () => s.end());
}).listen(port, host);`
