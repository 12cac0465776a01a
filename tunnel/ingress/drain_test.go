package ingress_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// Connections that were accepted just before a drain are served, though what they speak shows only after.
func TestDrainServesWhatWasAccepted(t *testing.T) {
	for name, protocol := range map[string]string{"TCP": tunnel.IngressTCP, "TLS passed on": tunnel.IngressTLS, "HTTP": tunnel.IngressHTTP} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, func(c *tunnel.Config) {
				c.Listeners[0].Ingress.Protocols = []string{protocol}
				if protocol == tunnel.IngressTLS {
					c.Listeners[0].Ingress.Pass = []string{"shop.example"}
				}
				c.Routes[0].Hosts = nil
			})
			if protocol == tunnel.IngressHTTP {
				e.serve(t, appListen, echo)
			} else {
				tunneltest.Echo(t, e.net, appListen)
			}
			c := e.dial(t)
			for e.gw.Stats().Connections == 0 {
				runtime.Gosched()
			}
			drained := make(chan error, 1)
			go func() { drained <- e.gw.Drain(t.Context()) }() // ends with the connection; waited for below
			for {
				nc, err := e.net.From(netip.MustParseAddr(clientAddr))(t.Context(), netip.MustParseAddrPort(edgeListen))
				if err != nil {
					break
				}
				_ = nc.Close()
			}
			switch protocol {
			case tunnel.IngressTLS:
				wantHelloBack(t, c)
			case tunnel.IngressHTTP:
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
				if resp, _ := answerOn(t, c); resp.StatusCode != 200 {
					t.Errorf("answer %d, want 200", resp.StatusCode)
				}
			default:
				_, _ = io.WriteString(c, "\x01hello")
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
				if all, err := io.ReadAll(c); string(all) != "\x01hello" || err != nil {
					t.Errorf("%q, %v", all, err)
				}
			}
			_ = c.Close()
			if err := <-drained; err != nil {
				t.Errorf("Drain = %v\n%s", err, e.log)
			}
			if n := e.gw.Stats().Ended["draining"]; n != 0 {
				t.Errorf("%d flows were refused:\n%s", n, e.log)
			}
		})
	}
}

// wantHelloBack sends a ClientHello to who echoes it.
func wantHelloBack(t *testing.T, c net.Conn) {
	t.Helper()
	here, there := net.Pipe()
	go func() { // ends with the pipe, which is closed below
		_ = tls.Client(here, &tls.Config{ServerName: "shop.example"}).HandshakeContext(context.Background())
	}()
	hello := make([]byte, 4096)
	n, err := there.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	_ = there.Close()
	if _, err := c.Write(hello[:n]); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, n)
	if _, err := io.ReadFull(c, back); err != nil || string(back) != string(hello[:n]) {
		t.Errorf("%q, %v, want the hello back", back, err)
	}
}
