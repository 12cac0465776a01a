package h2_test

import (
	"context"
	"net"
	"testing"

	"culvert/tunnel/h2"

	"golang.org/x/net/nettest"
)

// loopback returns two ends of a TCP connection.
func loopback(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// connPair returns a client and a server connection over nc1 and nc2, and the streams that the server
// takes.
func connPair(t testing.TB, nc1, nc2 net.Conn, ccfg, scfg h2.Config) (*h2.Conn, *h2.Conn, <-chan *h2.Stream) {
	t.Helper()
	accepted := make(chan *h2.Stream, 1024)
	if scfg.Handler == nil {
		scfg.Handler = func(s *h2.Stream) { accepted <- s }
	}
	client, err := h2.NewClient(nc1, &ccfg)
	if err != nil {
		t.Fatal(err)
	}
	server, err := h2.NewServer(nc2, &scfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, accepted
}

// tunnelPair opens a CONNECT tunnel and returns both ends.
func tunnelPair(t testing.TB, client *h2.Conn, accepted <-chan *h2.Stream) (c, s *h2.Stream) {
	t.Helper()
	c, err := client.Open(context.Background(), &h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, false)
	if err != nil {
		t.Fatal(err)
	}
	s = <-accepted
	if err := s.Respond(&h2.Header{Status: 200}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Response(context.Background()); err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestNettest(t *testing.T) {
	for _, flip := range []bool{false, true} {
		name := "client first"
		if flip {
			name = "server first"
		}
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				nc1, nc2 := loopback(t)
				client, server, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
				c, s := tunnelPair(t, client, accepted)
				stop = func() { c.Close(); s.Close(); client.Close(); server.Close() }
				if flip {
					return s, c, stop, nil
				}
				return c, s, stop, nil
			})
		})
	}
}
