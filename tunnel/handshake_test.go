package tunnel_test

import (
	"crypto/tls"
	"io"
	"strings"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// What answers in the place of a hop is told apart, and the record says what to look at.
func TestHopThatIsNoGateway(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(*memnet.Conn, *tunneltest.Identity)
		cause  tunnel.Cause
		want   string
	}{
		{"plain HTTP", func(c *memnet.Conn, _ *tunneltest.Identity) {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, c)
		}, tunnel.CauseHopProtocol, "does not speak TLS on this port"},
		{"TLS for something else", func(c *memnet.Conn, id *tunneltest.Identity) {
			conf := id.AnyTLS()
			conf.NextProtos = nil
			tls.Server(c, conf).Handshake()
			io.Copy(io.Discard, c)
		}, tunnel.CauseHopProtocol, "not h2"},
		{"TLS that breaks off", func(c *memnet.Conn, _ *tunneltest.Identity) {
			c.Write([]byte{22, 3, 3, 0, 4, 0, 0, 0, 0}) // a handshake record with a HelloRequest, which TLS 1.3 does not have
			io.Copy(io.Discard, c)
		}, tunnel.CauseHopTLS, "TLS handshake"},
		{"nothing at all", func(*memnet.Conn, *tunneltest.Identity) {}, tunnel.CauseUnavailable, "TLS handshake"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
				c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008"}
			}})
			id := p.CA.Issue(t, "cluster.local", "default", "other")
			tunneltest.Serve(t, p.Net, "10.0.0.3:15008", func(c *memnet.Conn) {
				defer c.Close()
				tt.answer(c, id)
			})
			err := p.Refusal(testContext(t), "192.0.2.1:80")
			if tunnel.CauseOf(err) != tt.cause || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("dial = %v (cause %v), want cause %v and %q", err, tunnel.CauseOf(err), tt.cause, tt.want)
			}
		})
	}
}
