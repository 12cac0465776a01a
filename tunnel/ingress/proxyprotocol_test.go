package ingress_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	proxyproto "github.com/pires/go-proxyproto"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest/memnet"
)

// A load balancer that is trusted says where the client is; a stranger who says so is not believed, and one that should say so and
// does not is refused.
func TestProxyProtocolIn(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"
	v2 := proxyproto.HeaderProxyFromAddrs(2, tcpAddr("203.0.113.9:1234"), tcpAddr("198.51.100.1:443"))
	bytes2, err := v2.Format()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		trusted []string
		first   string
		status  int // 0: no answer
		src     string
	}{
		"v1 of a trusted one":            {[]string{"192.0.2.0/24"}, "PROXY TCP4 203.0.113.9 198.51.100.1 1234 443\r\n", 200, "203.0.113.9:1234"},
		"v2 of a trusted one":            {[]string{"192.0.2.7"}, string(bytes2), 200, "203.0.113.9:1234"},
		"unknown, of a trusted one":      {[]string{"192.0.2.7"}, "PROXY UNKNOWN\r\n", 200, "192.0.2.7:"},
		"none of a trusted one":          {[]string{"192.0.2.7"}, "", 0, "192.0.2.7:"},
		"half of one":                    {[]string{"192.0.2.7"}, "PROXY TCP4 203.0.113.9 198.51.100.1 1234", 0, "192.0.2.7:"},
		"an address that is none":        {[]string{"192.0.2.7"}, "PROXY TCP4 203.0.113.999 198.51.100.1 1234 443\r\n", 0, "192.0.2.7:"},
		"v1 of a stranger":               {[]string{"10.0.0.0/8"}, "PROXY TCP4 203.0.113.9 198.51.100.1 1234 443\r\n", 400, "192.0.2.7:"},
		"v2 of a stranger":               {nil, string(bytes2), 400, "192.0.2.7:"},
		"v2 that promises more than 4 K": {[]string{"192.0.2.7"}, string(bytes2[:14]) + "\xff\xff" + strings.Repeat("a", 70_000), 0, "192.0.2.7:"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, func(c *tunnel.Config) { c.Listeners[0].Ingress.ProxyProtocol = tt.trusted })
			e.serve(t, appListen, echo)
			c := e.dial(t)
			go func() { _, _ = io.WriteString(c, tt.first+request) }() // ends with the connection
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if tt.status == 0 && err == nil || tt.status != 0 && (err != nil || resp.StatusCode != tt.status) {
				t.Errorf("%v, %v, want %d", resp, err, tt.status)
			}
			_ = c.Close()
			e.gw.Close()
			if !strings.Contains(e.log.String(), "src="+tt.src) {
				t.Errorf("no record of a client at %s:\n%s", tt.src, e.log)
			}
		})
	}
}

// The destination is told where a request comes from, and connections are not shared by clients then.
func TestProxyProtocolOut(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) { c.Routes[0].ProxyProtocol = "v2" })
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := make(chan *proxyproto.Header, 4)
	go l.Serve(func(c *memnet.Conn) {
		br := bufio.NewReader(c)
		h, err := proxyproto.Read(br)
		if err != nil {
			t.Error(err)
			_ = c.Close()
			return
		}
		seen <- h
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	for range 2 {
		c := e.client(t, http1)
		for range 2 {
			resp, err := c.Get("http://shop.example/")
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %v", resp, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
	}
	first, second := <-seen, <-seen
	if len(seen) > 0 || first.SourceAddr.String() == second.SourceAddr.String() || !strings.HasPrefix(first.SourceAddr.String(), clientAddr+":") {
		t.Errorf("the application is told %v and %v, and %d more; want one of each client", first, second, len(seen))
	}
	tlvs, err := first.TLVs()
	if err != nil || len(tlvs) != 1 || string(tlvs[0].Value) != "shop.example" {
		t.Errorf("%v, %v", tlvs, err)
	}
}
