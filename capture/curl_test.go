package capture

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// curlProxyError is CURLE_PROXY, which curl ends with when a proxy says no.
const curlProxyError = 97

// proxy is as little around a Way as curl needs: it leads every accepted flow to one server.
type proxy struct {
	t       *testing.T
	way     Way
	target  string    // where every flow is led; "" refuses
	refusal Refusal   // why
	flows   chan Conn // what was caught
	failed  chan error
	running sync.WaitGroup
}

// start listens and returns the address; everything ends with the test.
func (p *proxy) start() string {
	ln := listen(p.t)
	p.flows, p.failed = make(chan Conn, 16), make(chan error, 16)
	p.running.Add(1)
	// Ends when ln is closed; the cleanup waits for it.
	go func() {
		defer p.running.Done()
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			p.running.Add(1)
			// Ends when both directions have; the cleanup waits for it.
			go func() {
				defer p.running.Done()
				p.serve(nc)
			}()
		}
	}()
	p.t.Cleanup(func() {
		ln.Close()
		p.running.Wait()
	})
	return ln.Addr().String()
}

func (p *proxy) serve(nc net.Conn) {
	c, err := p.way.Catch(nc)
	if err != nil {
		p.failed <- err
		return
	}
	defer c.Close()
	p.flows <- Conn{Host: c.Host, Addr: c.Addr, Port: c.Port, User: c.User}
	if p.target == "" {
		if err := c.Refused(p.refusal); err != nil {
			p.t.Errorf("Refused = %v, want nil", err)
		}
		return
	}
	up, err := net.Dial("tcp", p.target)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer up.Close()
	if err := c.Accepted(); err != nil {
		p.t.Errorf("Accepted = %v, want nil", err)
		return
	}
	carryBoth(c, up)
}

// carryBoth copies both ways between the app and its target, until each has said all.
func carryBoth(c *Conn, up net.Conn) {
	there := make(chan struct{})
	go func() { // ends when the app has said all, or c is closed; waited for below
		defer close(there)
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
	_ = c.CloseWrite()
	<-there
}

// curl runs curl and returns what it prints. It is part of what the suite installs: without it the test
// fails.
func curl(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	path, err := exec.LookPath("curl")
	if err != nil {
		t.Fatalf("%v; `make test` installs it", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"-q", "-sS", "--noproxy", ""}, args...)...)
	cmd.Env = []string{} // no proxy variables
	text, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func TestCurl(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s at %s, %d bytes", r.Method, r.Host, len(body))
	}))
	t.Cleanup(page.Close)
	target := page.Listener.Addr().String()
	users := map[string]Password{"bob": "secret", "ann": "p w:/@"}

	for _, tt := range []struct {
		name       string
		users      map[string]Password
		proxy      string // with ADDR for the listener
		args       []string
		out        string
		host, addr string
		user       string
	}{
		{"name", nil, "socks5h://ADDR", []string{"http://Shop.example:8080/"}, "GET at Shop.example:8080, 0 bytes", "shop.example", "", ""},
		{"IPv4", nil, "socks5h://ADDR", []string{"http://192.0.2.1:8080/"}, "GET at 192.0.2.1:8080, 0 bytes", "", "192.0.2.1", ""},
		{"IPv6", nil, "socks5h://ADDR", []string{"http://[2001:db8::1]:8080/"}, "GET at [2001:db8::1]:8080, 0 bytes", "", "2001:db8::1", ""},
		{"resolved by curl", nil, "socks5://ADDR", []string{"--resolve", "shop.example:8080:192.0.2.7", "http://shop.example:8080/"},
			"GET at shop.example:8080, 0 bytes", "", "192.0.2.7", ""},
		{"POST", nil, "socks5h://ADDR", []string{"--data", strings.Repeat("x", 1<<16), "http://shop.example:8080/"},
			"POST at shop.example:8080, 65536 bytes", "shop.example", "", ""},
		{"login", users, "socks5h://bob:secret@ADDR", []string{"http://shop.example:8080/"}, "GET at shop.example:8080, 0 bytes", "shop.example", "", "bob"},
		{"login with address", users, "socks5://bob:secret@ADDR", []string{"http://192.0.2.1:8080/"}, "GET at 192.0.2.1:8080, 0 bytes", "", "192.0.2.1", "bob"},
		{"login with odd characters", users, "socks5h://ann:p%20w%3a%2f%40@ADDR", []string{"http://shop.example:8080/"},
			"GET at shop.example:8080, 0 bytes", "shop.example", "", "ann"},
		{"login where none is needed", nil, "socks5h://bob:secret@ADDR", []string{"http://shop.example:8080/"}, "GET at shop.example:8080, 0 bytes", "shop.example", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &proxy{t: t, way: newSocks5(t, Socks5Config{Users: tt.users}), target: target}
			at := strings.Replace(tt.proxy, "ADDR", p.start(), 1)
			out, code := curl(t, append([]string{"-x", at}, tt.args...)...)
			if out != tt.out || code != 0 {
				t.Fatalf("curl prints %q and ends with %d, want %q and 0", out, code, tt.out)
			}
			c := <-p.flows
			addr := ""
			if c.Addr.IsValid() {
				addr = c.Addr.String()
			}
			if c.Host != tt.host || addr != tt.addr || c.Port != 8080 || c.User != tt.user {
				t.Errorf("caught %q, %q, %d, %q, want %q, %q, 8080, %q", c.Host, addr, c.Port, c.User, tt.host, tt.addr, tt.user)
			}
		})
	}
}

func TestCurlIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		users   map[string]Password
		refusal Refusal
		proxy   string
		code    int
		text    string // of curl, "" if it has none of its own
		cause   Cause  // of the failed handshake; "" if the flow is refused
	}{
		{"not allowed", nil, NotAllowed, "socks5h://ADDR", curlProxyError, "(2)", ""},
		{"host unreachable", nil, HostUnreachable, "socks5h://ADDR", curlProxyError, "(4)", ""},
		{"connection refused", nil, ConnectionRefused, "socks5h://ADDR", curlProxyError, "(5)", ""},
		{"wrong password", bob, General, "socks5h://bob:hunter2@ADDR", curlProxyError, "", CauseAuth},
		{"unknown user", bob, General, "socks5h://eve:secret@ADDR", curlProxyError, "", CauseAuth},
		{"no login", bob, General, "socks5h://ADDR", curlProxyError, "", CauseAuth},
		{"SOCKS4 with a login", bob, General, "socks4a://ADDR", curlProxyError, "", CauseAuth},
		{"SOCKS4", nil, NotAllowed, "socks4a://ADDR", curlProxyError, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &proxy{t: t, way: newSocks5(t, Socks5Config{Users: tt.users}), refusal: tt.refusal}
			at := strings.Replace(tt.proxy, "ADDR", p.start(), 1)
			out, code := curl(t, "-x", at, "http://shop.example:8080/")
			if code != tt.code || !strings.Contains(out, tt.text) {
				t.Errorf("curl prints %q and ends with %d, want %q and %d", out, code, tt.text, tt.code)
			}
			if tt.cause != "" {
				wantFailure(t, caught{err: <-p.failed}, tt.cause)
			}
		})
	}
	// curl takes the socket for an HTTP proxy; the log tells what is wrong.
	t.Run("HTTP proxy", func(t *testing.T) {
		p := &proxy{t: t, way: newSocks5(t, Socks5Config{})}
		_, code := curl(t, "-x", "http://"+p.start(), "http://shop.example:8080/")
		if code == 0 {
			t.Error("curl ends with 0")
		}
		wantFailure(t, caught{err: <-p.failed}, CauseProtocol, "this is an HTTP request", "speaks SOCKS5")
	})
}
