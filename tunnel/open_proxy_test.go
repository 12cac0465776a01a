package tunnel_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

const proxyAddr = "10.0.0.7:3128"

// newProxied makes a gateway whose flows go by the proxy h, where bob logs in. Of an https proxy roots are believed.
func newProxied(t *testing.T, n *memnet.Net, h tunnel.HopConfig, roots *x509.CertPool) (*tunnel.Gateway, *tunneltest.Log) {
	t.Helper()
	if len(h.Endpoints) == 0 {
		h.Address = proxyAddr
	}
	log := &tunneltest.Log{}
	id := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "gw")
	return tunneltest.NewGateway(t, n, "10.0.0.1", id, &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"corp": h},
		Routes:    []tunnel.RouteConfig{{Via: []string{"corp"}}},
	}, nil, func(e *tunnel.Env) {
		bobLogsIn(e)
		e.OriginTLS = func(*tunnel.TLSConfig) (*tls.Config, error) { return &tls.Config{RootCAs: roots}, nil }
	}, logTo(log)), log
}

// bobLogsIn is the one user of all proxies.
func bobLogsIn(e *tunnel.Env) {
	e.Login = func(string) (string, string, error) { return "bob", "secret", nil }
}

// dialAs connects as a proxy does, which knows names.
func dialAs(n *memnet.Net, target string) (*memnet.Conn, error) {
	t, err := tunnel.ParseAuthority(target)
	if err != nil {
		return nil, err
	}
	if t.IsName() {
		addrs, err := n.Resolve(context.Background(), t.Host)
		if err != nil {
			return nil, err
		}
		t.Addr = addrs[0]
	}
	nc, err := n.From(netip.MustParseAddr("10.0.0.7"))(context.Background(), netip.AddrPortFrom(t.Addr, t.Port))
	if err != nil {
		return nil, err
	}
	return nc.(*memnet.Conn), nil
}

// serveHTTPProxy is a proxy of net/http's reading: it connects where it is asked to, once told user:password if that is set.
func serveHTTPProxy(t *testing.T, n *memnet.Net, address, login string, over func(net.Conn) net.Conn) {
	t.Helper()
	tunneltest.Serve(t, n, address, func(c *memnet.Conn) {
		defer c.Close()
		var nc net.Conn = c
		if over != nil {
			nc = over(c)
		}
		in := bufio.NewReader(nc)
		req, err := http.ReadRequest(in)
		if err != nil || req.Method != http.MethodConnect || req.Host != req.RequestURI {
			t.Errorf("the proxy was asked %+v, %v", req, err)
			return
		}
		user, password, _ := (&http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}).BasicAuth()
		if login != "" && login != user+":"+password {
			io.WriteString(nc, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"corp\"\r\nProxy-Authenticate: Negotiate\r\nContent-Length: 3\r\n\r\nno\n")
			return
		}
		to, err := dialAs(n, req.Host)
		if err != nil {
			io.WriteString(nc, "HTTP/1.1 502 Bad Gateway\r\nProxy-Status: corp; error=connection_refused\r\nContent-Length: 0\r\n\r\n")
			return
		}
		defer to.Close()
		io.WriteString(nc, "HTTP/1.1 200 Connection established\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n")
		splice(nc, in, to)
	})
}

// splice carries bytes both ways until both sides have ended.
func splice(nc net.Conn, in io.Reader, to *memnet.Conn) {
	back := make(chan struct{})
	go func() { // ends with to; awaited below
		io.Copy(nc, to)
		nc.(interface{ CloseWrite() error }).CloseWrite()
		close(back)
	}()
	io.Copy(to, in)
	to.CloseWrite()
	<-back
}

// serveSOCKS is a SOCKS5 proxy for CONNECT.
func serveSOCKS(t *testing.T, n *memnet.Net, address, login string) {
	t.Helper()
	tunneltest.Serve(t, n, address, func(c *memnet.Conn) {
		defer c.Close()
		read := func(n int) []byte {
			b := make([]byte, n)
			io.ReadFull(c, b)
			return b
		}
		read(int(read(2)[1])) // methods
		if login != "" {
			c.Write([]byte{5, 2})
			user := read(int(read(2)[1]))
			password := read(int(read(1)[0]))
			if string(user)+":"+string(password) != login {
				c.Write([]byte{1, 1})
				return
			}
			c.Write([]byte{1, 0})
		} else {
			c.Write([]byte{5, 0})
		}
		var host string
		switch read(4)[3] {
		case 1:
			host = net.IP(read(4)).String()
		case 3:
			host = string(read(int(read(1)[0])))
		case 4:
			host = net.IP(read(16)).String()
		}
		port := read(2)
		to, err := dialAs(n, net.JoinHostPort(host, fmt.Sprint(int(port[0])<<8|int(port[1]))))
		if err != nil {
			c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
			return
		}
		defer to.Close()
		c.Write(append([]byte{5, 0, 0, 3, 4}, "host\x00\x01"...))
		splice(c, c, to)
	})
}

// Flows go by proxies, with names as they are, and both directions end by themselves.
func TestProxies(t *testing.T) {
	ca := newWebCA(t)
	for _, tt := range []struct {
		name  string
		hop   tunnel.HopConfig
		serve func(*testing.T, *memnet.Net)
	}{
		{"http", tunnel.HopConfig{Proxy: "http"}, func(t *testing.T, n *memnet.Net) { serveHTTPProxy(t, n, proxyAddr, "", nil) }},
		{"http, login", tunnel.HopConfig{Proxy: "http", Login: "f"}, func(t *testing.T, n *memnet.Net) { serveHTTPProxy(t, n, proxyAddr, "bob:secret", nil) }},
		{"https", tunnel.HopConfig{Proxy: "https", TLS: tunnel.HopTLSConfig{ServerName: "api.example"}}, func(t *testing.T, n *memnet.Net) {
			conf := ca.server(t)
			serveHTTPProxy(t, n, proxyAddr, "", func(nc net.Conn) net.Conn { return tls.Server(nc, conf) })
		}},
		{"socks5", tunnel.HopConfig{Proxy: "socks5"}, func(t *testing.T, n *memnet.Net) { serveSOCKS(t, n, proxyAddr, "") }},
		{"socks5, login", tunnel.HopConfig{Proxy: "socks5", Login: "f"}, func(t *testing.T, n *memnet.Net) { serveSOCKS(t, n, proxyAddr, "bob:secret") }},
		{"the second address", tunnel.HopConfig{Proxy: "http", Config: endpoint.Config{Retries: 1, Endpoints: []endpoint.EndpointConfig{{Address: "10.0.0.8:1"}, {Address: proxyAddr}}}}, func(t *testing.T, n *memnet.Net) { serveHTTPProxy(t, n, proxyAddr, "", nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := memnet.New()
			tt.serve(t, n)
			n.Name("www.example", netip.MustParseAddr("10.9.9.9")) // for the proxy, and not for the gateway
			tunneltest.Echo(t, n, "10.9.9.9:80")
			g, log := newProxied(t, n, tt.hop, ca.roots)
			for _, target := range []string{"www.example:80", "10.9.9.9:80"} {
				c, err := tunneltest.Dial(testContext(t), g, "apps", target)
				if err != nil {
					t.Fatal(err)
				}
				wantEcho(t, c, strings.Repeat("by the proxy ", 10_000))
			}
			_, err := tunneltest.Dial(testContext(t), g, "apps", "10.9.9.9:81")
			if tunnel.CauseOf(err) != tunnel.CauseRefused {
				t.Errorf("dial = %v (cause %v), want that the destination refuses", err, tunnel.CauseOf(err))
			}
			g.Close()
			if !strings.Contains(log.String(), "hop=corp") || strings.Contains(log.String(), "secret") {
				t.Errorf("the records: %s", log)
			}
		})
	}
}

// What a proxy can answer to CONNECT, and what becomes of it. Nothing behind the head is lost or taken for part of it.
func TestProxyAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n\r\n"
	for _, tt := range []struct {
		name, answer string
		cause        tunnel.Cause
		want         string // in the error, or what the app reads
	}{
		{"bytes behind the head", ok + "HTTP/1.1 200 smuggled\r\n\r\n", tunnel.CauseNone, "HTTP/1.1 200 smuggled\r\n\r\n"},
		{"HTTP/1.0", "HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\nhi", tunnel.CauseNone, "hi"},
		{"no reason", "HTTP/1.1 200\r\n\r\nhi", tunnel.CauseNone, "hi"},
		{"another 2xx", "HTTP/1.1 299 Sure\r\n\r\nhi", tunnel.CauseNone, "hi"},
		{"a length that means nothing", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhi", tunnel.CauseNone, "hi"},
		{"interim answers", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok + "hi", tunnel.CauseNone, "hi"},
		{"interim answers without end", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100), tunnel.CauseHopProtocol, "none that is final"},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\n\r\n", tunnel.CauseHopProtocol, "answered 101"},
		{"a redirect", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", tunnel.CauseHopProtocol, "answered 302"},
		{"forbidden", "HTTP/1.1 403 Forbidden\r\n\r\n", tunnel.CauseDenied, "answered 403"},
		{"bad gateway", "HTTP/1.1 502 Bad Gateway\r\n\r\n", tunnel.CauseUnavailable, "answered 502"},
		{"what it says of itself", "HTTP/1.1 502 Bad Gateway\r\nProxy-Status: squid; error=dns_error\r\n\r\n", tunnel.CauseDNS, "dns_error"},
		{"login", "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nproxy-authenticate: NTLM\r\n\r\n", tunnel.CauseDenied, "wants a login (Basic, NTLM); write user:password"},
		{"garbage", "SSH-2.0-OpenSSH_9.9\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"HTTP/2", "HTTP/2 200 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"HTTP/1.2", "HTTP/1.2 200 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"a status of two digits", "HTTP/1.1 20 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"a status of four digits", "HTTP/1.1 2000 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"a status with a sign", "HTTP/1.1 +20 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"a status below 100", "HTTP/1.1 099 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"two spaces", "HTTP/1.1  200 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"a space before", " HTTP/1.1 200 OK\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"LF alone", "HTTP/1.1 200 OK\n\n", tunnel.CauseHopProtocol, "CRLF"},
		{"CR alone", "HTTP/1.1 200 OK\rX: y\r\n\r\n", tunnel.CauseHopProtocol, "CR within"},
		{"a folded field", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", tunnel.CauseHopProtocol, "no field"},
		{"a space before the colon", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", tunnel.CauseHopProtocol, "no field"},
		{"no colon", "HTTP/1.1 200 OK\r\nX\r\n\r\n", tunnel.CauseHopProtocol, "no field"},
		{"no name", "HTTP/1.1 200 OK\r\n: y\r\n\r\n", tunnel.CauseHopProtocol, "no field"},
		{"NUL", "HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n", tunnel.CauseHopProtocol, "no field"},
		{"NUL in the first line", "HTTP/1.1 200 \x00\r\n\r\n", tunnel.CauseHopProtocol, "does not answer in HTTP/1"},
		{"fields without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 2000), tunnel.CauseHopProtocol, "more than 128 fields"},
		{"a line without end", "HTTP/1.1 200 " + strings.Repeat("x", 20_000), tunnel.CauseHopProtocol, "longer than"},
		{"it closes", "", tunnel.CauseUnavailable, "before its answer"},
		{"it closes in between", "HTTP/1.1 200 OK\r\n", tunnel.CauseUnavailable, "before its answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := memnet.New()
			tunneltest.Serve(t, n, proxyAddr, func(c *memnet.Conn) {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					t.Errorf("the request: %v", err)
				}
				io.WriteString(c, tt.answer)
				c.CloseWrite()
				io.Copy(io.Discard, c)
			})
			g, _ := newProxied(t, n, tunnel.HopConfig{Proxy: "http"}, nil)
			c, err := tunneltest.Dial(testContext(t), g, "apps", "www.example:80")
			if tunnel.CauseOf(err) != tt.cause || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "hop corp")) {
				t.Fatalf("dial = %v (cause %v), want cause %v and %q of hop corp", err, tunnel.CauseOf(err), tt.cause, tt.want)
			}
			if err != nil {
				return
			}
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != tt.want || err != nil {
				t.Errorf("the app reads %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// What a SOCKS5 proxy can answer.
func TestSOCKSAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		login  string
		answer string
		cause  tunnel.Cause
		want   string
	}{
		{"bytes behind the reply", "", "\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05\x00", tunnel.CauseNone, "\x05\x00"},
		{"a name in the reply", "", "\x05\x00\x05\x00\x00\x03\x01x\x00\x00hi", tunnel.CauseNone, "hi"},
		{"no method", "", "\x05\xff", tunnel.CauseDenied, "wants a login"},
		{"no method with a login", "f", "\x05\xff", tunnel.CauseDenied, "none of the ways"},
		{"the login is wrong", "f", "\x05\x02\x01\x01", tunnel.CauseDenied, "does not take the user"},
		{"a method not offered", "", "\x05\x02\x01\x00\x00\x00", tunnel.CauseHopProtocol, "SOCKS5"},
		{"GSSAPI", "f", "\x05\x01", tunnel.CauseHopProtocol, "SOCKS5"},
		{"general failure", "", "\x05\x00\x05\x01\x00\x01", tunnel.CauseUnavailable, "answers 1"},
		{"not allowed", "", "\x05\x00\x05\x02\x00\x01", tunnel.CauseDenied, "do not allow"},
		{"not allowed with a login", "f", "\x05\x02\x01\x00\x05\x02\x00\x01", tunnel.CauseDenied, "do not allow"},
		{"network", "", "\x05\x00\x05\x03\x00\x01", tunnel.CauseUnroutable, "answers 3"},
		{"host", "", "\x05\x00\x05\x04\x00\x01", tunnel.CauseUnavailable, "answers 4"},
		{"refused", "", "\x05\x00\x05\x05\x00\x01", tunnel.CauseRefused, "answers 5"},
		{"TTL", "", "\x05\x00\x05\x06\x00\x01", tunnel.CauseTimeout, "answers 6"},
		{"no CONNECT", "", "\x05\x00\x05\x07\x00\x01", tunnel.CauseHopProtocol, "answers 7"},
		{"an odd reply", "", "\x05\x00\x05\xee\x00\x01", tunnel.CauseUnavailable, "answers 238"},
		{"a reserved byte", "", "\x05\x00\x05\x00\x01\x01\x00\x00\x00\x00\x00\x00", tunnel.CauseHopProtocol, "SOCKS5"},
		{"an odd address", "", "\x05\x00\x05\x00\x00\x07", tunnel.CauseHopProtocol, "SOCKS5"},
		{"SOCKS4", "", "\x00\x5a\x00\x00\x00\x00\x00\x00", tunnel.CauseHopProtocol, "SOCKS5"},
		{"HTTP", "", "HTTP/1.1 400 Bad Request\r\n\r\n", tunnel.CauseHopProtocol, "SOCKS5"},
		{"it closes", "", "", tunnel.CauseUnavailable, "before its answer"},
		{"it closes in between", "", "\x05\x00\x05", tunnel.CauseUnavailable, "before its answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := memnet.New()
			tunneltest.Serve(t, n, proxyAddr, func(c *memnet.Conn) {
				defer c.Close()
				io.WriteString(c, tt.answer)
				c.CloseWrite()
				io.Copy(io.Discard, c)
			})
			g, _ := newProxied(t, n, tunnel.HopConfig{Proxy: "socks5", Login: tt.login}, nil)
			c, err := tunneltest.Dial(testContext(t), g, "apps", "www.example:80")
			if tunnel.CauseOf(err) != tt.cause || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "hop corp")) {
				t.Fatalf("dial = %v (cause %v), want cause %v and %q of hop corp", err, tunnel.CauseOf(err), tt.cause, tt.want)
			}
			if err != nil {
				return
			}
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != tt.want || err != nil {
				t.Errorf("the app reads %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// A proxy that is silent, or that says one byte every second, is given up in time; so is one whose app has gone.
func TestProxyThatIsSlow(t *testing.T) {
	for _, kind := range []string{"http", "https", "socks5"} {
		for name, answer := range map[string]func(*memnet.Conn){
			"silent": func(c *memnet.Conn) { io.Copy(io.Discard, c) },
			"byte by byte": func(c *memnet.Conn) {
				for _, err := c.Write([]byte{5, 0}); err == nil; _, err = c.Write([]byte("H")) {
					time.Sleep(time.Second)
				}
			},
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				if name != "silent" && kind != "http" {
					return // it is no such proxy
				}
				synctest.Test(t, func(t *testing.T) {
					n := memnet.New()
					tunneltest.Serve(t, n, proxyAddr, func(c *memnet.Conn) {
						defer c.Close()
						answer(c)
					})
					g, _ := newProxied(t, n, tunnel.HopConfig{Proxy: kind}, nil)
					start := time.Now()
					_, err := tunneltest.Dial(t.Context(), g, "apps", "www.example:80")
					if took := time.Since(start); tunnel.CauseOf(err) != tunnel.CauseTimeout || took != 10*time.Second {
						t.Errorf("dial = %v (cause %v) after %v, want that it took too long, after the time for dialling", err, tunnel.CauseOf(err), took)
					}
					g.Close()
				})
			})
		}
	}
}

// A proxy may stand before gateways, and behind them, and before another proxy.
func TestProxyInAChain(t *testing.T) {
	for _, tt := range []struct {
		name string
		via  []string
	}{
		{"before a gateway", []string{"corp", "exit"}},
		{"behind a gateway", []string{"exit", "inside"}},
		{"before and behind", []string{"corp", "exit", "inside"}},
		{"two of them", []string{"corp", "inside"}},
		{"SOCKS5 and then HTTP", []string{"socks", "corp"}},
		{"HTTP and then SOCKS5", []string{"corp", "socks", "exit"}},
		{"SOCKS5 behind a gateway", []string{"exit", "far"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{
				Entry: func(c *tunnel.Config) {
					c.Hops["corp"] = tunnel.HopConfig{Address: proxyAddr, Proxy: "http", Login: "f"}
					c.Hops["inside"] = tunnel.HopConfig{Address: "10.0.0.2:3128", Proxy: "http"}
					c.Hops["socks"] = tunnel.HopConfig{Address: "10.0.0.8:1080", Proxy: "socks5"}
					c.Hops["far"] = tunnel.HopConfig{Address: "10.0.0.2:1080", Proxy: "socks5"}
					c.Routes = []tunnel.RouteConfig{{Via: tt.via}}
				},
				EntryEnv: bobLogsIn,
			})
			serveHTTPProxy(t, p.Net, proxyAddr, "bob:secret", nil)
			serveHTTPProxy(t, p.Net, "10.0.0.2:3128", "", nil)
			serveSOCKS(t, p.Net, "10.0.0.8:1080", "")
			serveSOCKS(t, p.Net, "10.0.0.2:1080", "")
			p.Echo(t, "10.0.0.2:80")
			for range 3 {
				c, err := p.Dial(testContext(t), "10.0.0.2:80")
				if err != nil {
					t.Fatal(err)
				}
				wantEcho(t, c, strings.Repeat("through all of them ", 10_000))
			}
			p.Entry.Close()
			if !strings.Contains(p.Log.String(), "hop="+strings.Join(tt.via, ",")) {
				t.Errorf("no record names the chain: %s", p.Log)
			}
		})
	}
}

// TLS with the destination goes through a proxy, which sees none of it; a proxy is no gateway.
func TestProxyWithTLSToTheDestination(t *testing.T) {
	ca := newWebCA(t)
	n := memnet.New()
	serveHTTPProxy(t, n, proxyAddr, "", nil)
	serveTLS(t, n, ca.server(t), echoTLS)
	n.Name("api.example", netip.MustParseAddr(publicAddr))
	id := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "gw")
	cfg := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"corp": {Address: proxyAddr, Proxy: "http"}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"corp"}, TLS: &tunnel.TLSConfig{}}},
	}
	g := tunneltest.NewGateway(t, n, "10.0.0.1", id, cfg, nil, func(e *tunnel.Env) {
		e.OriginTLS = func(*tunnel.TLSConfig) (*tls.Config, error) { return &tls.Config{RootCAs: ca.roots}, nil }
	}, logTo(&tunneltest.Log{}))
	c, err := tunneltest.Dial(testContext(t), g, "apps", "api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, "plain here")
	_, _, err = g.Ping(testContext(t), cfg, "corp")
	if tunnel.CauseOf(err) != tunnel.CauseConfiguration {
		t.Errorf("Ping = %v, want that a proxy is no gateway", err)
	}
}

// A login that cannot be read is a fault of this gateway, and its file's content stays out of the record.
func TestProxyLoginFault(t *testing.T) {
	n := memnet.New()
	serveHTTPProxy(t, n, proxyAddr, "", nil)
	id := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "gw")
	g := tunneltest.NewGateway(t, n, "10.0.0.1", id, &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"corp": {Address: proxyAddr, Proxy: "http", Login: "f"}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"corp"}}},
	}, nil, func(e *tunnel.Env) {
		e.Login = func(string) (string, string, error) { return "", "", errors.New("the file is gone") }
	}, logTo(&tunneltest.Log{}))
	if _, err := tunneltest.Dial(testContext(t), g, "apps", "www.example:80"); tunnel.CauseOf(err) != tunnel.CauseConfiguration || !strings.Contains(err.Error(), "the file is gone") {
		t.Errorf("dial = %v, want that the login cannot be read", err)
	}
}
