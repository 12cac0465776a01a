package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// chunkBytes is what one iteration carries.
const chunkBytes = 64 << 10

// BenchmarkTunnel carries bytes from a server to its clients through whole tunnels in one process, over
// loopback TCP with TLS between the gateways: BenchmarkTunnel/WAY/STREAMS. "direct" has no gateway and is
// the bound. connect: a Go program's Dialer and an exit gateway; socks and forward: an entry gateway and
// an exit gateway.
func BenchmarkTunnel(b *testing.B) {
	for _, way := range []string{"direct", "connect", "socks", "forward"} {
		b.Run(way, func(b *testing.B) {
			for _, streams := range []int{1, 8} {
				b.Run(strconv.Itoa(streams), func(b *testing.B) { carry(b, newWay(b, way), streams) })
			}
		})
	}
}

// BenchmarkTunnelOpen opens a tunnel, carries a byte each way and closes it, one after another.
func BenchmarkTunnelOpen(b *testing.B) {
	for _, way := range []string{"direct", "connect", "socks", "forward"} {
		b.Run(way, func(b *testing.B) {
			dial := newWay(b, way)
			open(b, dial) // the connection to the hop
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				open(b, dial)
			}
		})
	}
}

// open asks the source for one byte.
func open(b *testing.B, dial func() (net.Conn, error)) {
	c, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := ask(c, 1); err != nil {
		b.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); n != 1 || err != nil {
		b.Fatalf("received %d bytes, %v", n, err)
	}
}

// carry reads b.N chunks, shared by so many streams.
func carry(b *testing.B, dial func() (net.Conn, error), streams int) {
	conns := make([]net.Conn, streams)
	for i := range conns {
		c, err := dial()
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	b.SetBytes(chunkBytes)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, c := range conns {
		share := uint64(b.N/streams) * chunkBytes
		if i == 0 {
			share += uint64(b.N%streams) * chunkBytes
		}
		wg.Go(func() {
			if err := ask(c, share); err != nil {
				b.Error(err)
				return
			}
			if n, err := io.Copy(discard{}, c); uint64(n) != share || err != nil {
				b.Errorf("received %d of %d bytes, %v", n, share, err)
			}
		})
	}
	wg.Wait()
}

// discard reads in large pieces, as a fast client does.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (discard) ReadFrom(r io.Reader) (total int64, err error) {
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// ask tells the source how much to send.
func ask(c net.Conn, n uint64) error {
	_, err := c.Write(binary.BigEndian.AppendUint64(nil, n))
	return err
}

// source is a server that sends to each client as many bytes as it asks for, and ends.
func source(b *testing.B) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 256<<10)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				var head [8]byte
				if _, err := io.ReadFull(c, head[:]); err != nil {
					return
				}
				for left := binary.BigEndian.Uint64(head[:]); left > 0; {
					n, err := c.Write(data[:min(left, uint64(len(data)))])
					if err != nil {
						return
					}
					left -= uint64(n)
				}
			})
		}
	})
	b.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// newWay returns a function that connects to a source.
func newWay(b *testing.B, way string) func() (net.Conn, error) {
	dest := source(b)
	if way == "direct" {
		return func() (net.Conn, error) { return net.Dial("tcp", dest) }
	}
	ca := tunneltest.NewCA(b)
	exit := start(b, ca, "exit", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "127.0.0.1:0"}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"mesh"}, Destinations: []string{"127.0.0.1/32"}}},
		Policy:    policy.Config{Egress: []string{"127.0.0.1/32"}},
	})
	hop := tunnel.HopConfig{Address: exit.Addr("mesh").String()}
	if way == "connect" {
		id := ca.Issue(b, "cluster.local", "default", "app")
		d, err := tunnel.NewDialer(tunnel.Env{Self: id.Self, ClientTLS: id.ClientTLS}, hop)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { d.Close() })
		return func() (net.Conn, error) { return d.Dial("tcp", dest) }
	}
	l := tunnel.ListenerConfig{Name: "apps", Kind: tunnel.KindForward, Address: "127.0.0.1:0", To: dest}
	if way == "socks" {
		l.Kind, l.To = tunnel.KindSOCKS5, ""
	}
	entry := start(b, ca, "entry", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{l},
		Hops:      map[string]tunnel.HopConfig{"exit": hop},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"apps"}, Via: []string{"exit"}}},
	})
	addr := entry.Addr("apps").String()
	if way == "forward" {
		return func() (net.Conn, error) { return net.Dial("tcp", addr) }
	}
	return func() (net.Conn, error) { return dialSOCKS(addr, netip.MustParseAddrPort(dest)) }
}

// start runs a gateway until the benchmark ends.
func start(b *testing.B, ca *tunneltest.CA, name string, cfg *tunnel.Config) *tunnel.Gateway {
	id := ca.Issue(b, "cluster.local", "default", name)
	g, err := tunnel.New(cfg, tunnel.Env{
		Log: slog.New(slog.DiscardHandler), Self: id.Self, ServerTLS: id.ServerTLS, ClientTLS: id.ClientTLS,
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := g.Start(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(g.Close)
	return g
}

// dialSOCKS connects through a SOCKS5 server without authentication (RFC 1928).
func dialSOCKS(server string, dest netip.AddrPort) (net.Conn, error) {
	c, err := net.Dial("tcp", server)
	if err != nil {
		return nil, err
	}
	ip := dest.Addr().As4()
	req := append([]byte{5, 1, 0}, 5, 1, 0, 1)
	req = binary.BigEndian.AppendUint16(append(req, ip[:]...), dest.Port())
	if _, err := c.Write(req); err != nil {
		c.Close()
		return nil, err
	}
	var reply [12]byte // the chosen method and an answer with an IPv4 address
	if _, err := io.ReadFull(c, reply[:]); err != nil {
		c.Close()
		return nil, err
	}
	if reply[3] != 0 {
		c.Close()
		return nil, fmt.Errorf("SOCKS reply %d", reply[3])
	}
	return c, nil
}
