package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// program is a Go program on a network in memory that serves, or dials, without a gateway beside it.
type program struct {
	net *memnet.Net
	ca  *tunneltest.CA
	log *tunneltest.Log
}

func newProgram(t *testing.T) *program {
	return &program{net: memnet.New(), ca: tunneltest.NewCA(t), log: &tunneltest.Log{}}
}

func (p *program) env(t *testing.T, namespace, account, addr string) tunnel.Env {
	id := p.ca.Issue(t, "cluster.local", namespace, account)
	return tunnel.Env{
		Self: id.Self, ServerTLS: id.ServerTLS, ClientTLS: id.ClientTLS, Resolve: p.net.Resolve,
		Dial:   p.net.From(netip.MustParseAddr(addr)),
		Listen: func(_ context.Context, s tunnel.Socket) (net.Listener, error) { return p.net.Listen(s.Address) },
	}
}

func (p *program) listen(t *testing.T, rules policy.Config) *tunnel.Listener {
	t.Helper()
	l, err := tunnel.Listen(testContext(t), "10.0.0.2:15008", p.env(t, "default", "orders", "10.0.0.2"), rules)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Cut)
	return l
}

func (p *program) dialer(t *testing.T, namespace string) *tunnel.Dialer {
	t.Helper()
	d, err := tunnel.NewDialer(p.env(t, namespace, "client", "10.0.0.1"), tunnel.HopConfig{
		Address: "10.0.0.2:15008", Identity: "spiffe://cluster.local/ns/default/sa/orders",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// An unmodified http.Client and http.Server talk through a Dialer and a Listener.
func TestHTTPOverDialerAndListener(t *testing.T) {
	p := newProgram(t)
	l, d := p.listen(t, policy.Config{}), p.dialer(t, "default")
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := r.Context().Value(connKey{}).(*tunnel.PeerConn)
			fmt.Fprintf(w, "%s asked for %s of %s", c.Peer().ServiceAccount(), r.URL.Path, c.Target())
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }() // ends with Shutdown; received below
	transport := &http.Transport{DialContext: d.DialContext}
	client := &http.Client{Transport: transport}
	for i := range 20 {
		resp, err := client.Get(fmt.Sprintf("http://orders.example:80/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf("client asked for /%d of orders.example:80", i); string(body) != want || err != nil {
			t.Errorf("answer %q, %v, want %q", body, err, want)
		}
	}
	transport.CloseIdleConnections()
	if err := server.Shutdown(testContext(t)); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve = %v, want ErrServerClosed", err)
	}
}

type connKey struct{}

func TestListenerDecides(t *testing.T) {
	p := newProgram(t)
	l := p.listen(t, policy.Config{Allow: []string{"cluster.local/ns/friends/*"}})
	go func() { // ends with the listener, which the clean-up cuts
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("hello"))
			c.Close()
		}
	}()
	for _, tt := range []struct {
		namespace string
		ok        bool
	}{{"default", true}, {"friends", true}, {"strangers", false}} {
		c, err := p.dialer(t, tt.namespace).Dial("tcp", "orders:80")
		var refused *tunnel.RefusedError
		if tt.ok {
			if err != nil {
				t.Errorf("dial from %s = %v", tt.namespace, err)
				continue
			}
			if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
				t.Errorf("read %q, %v from %s", got, err, tt.namespace)
			}
			c.Close()
		} else if !errors.As(err, &refused) || refused.Status != 401 {
			t.Errorf("dial from %s = %v, want 401", tt.namespace, err)
		}
	}
}

func TestListenerClose(t *testing.T) {
	p := newProgram(t)
	l, d := p.listen(t, policy.Config{}), p.dialer(t, "default")
	accepted := make(chan net.Conn, 1)
	go func() { // ends with its Accept; received below
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	c, err := d.Dial("tcp", "orders:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-accepted
	l.Close()
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v, want net.ErrClosed", err)
	}
	if _, err := d.Dial("tcp", "orders:80"); err == nil {
		t.Error("dial after Close succeeded")
	}
	s.Write([]byte("alive"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); string(buf) != "alive" || err != nil {
		t.Errorf("a connection read %q, %v after the listener was closed, want it to live on", buf, err)
	}
	l.Cut()
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("write after Cut succeeded")
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a connection that was cut shows as complete")
	}
	s.Close()
}

// Nobody accepts: the peer is told, in time.
func TestListenerWithoutAccept(t *testing.T) {
	p := newProgram(t)
	p.listen(t, policy.Config{})
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if _, err := p.dialer(t, "default").DialContext(ctx, "tcp", "orders:80"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial = %v, want its deadline", err)
	}
}

func TestDialerErrors(t *testing.T) {
	p := newProgram(t)
	env := p.env(t, "default", "client", "10.0.0.1")
	d := p.dialer(t, "default")
	for _, tt := range []struct{ network, address, want string }{
		{"udp", "a:1", "unknown network"},
		{"tcp", "a", "no port"},
		{"tcp", "127.1:80", "number"},
		{"tcp", "a:1", "connection refused"}, // nobody listens at the hop
	} {
		if _, err := d.Dial(tt.network, tt.address); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Dial(%q, %q) = %v, want %q", tt.network, tt.address, err, tt.want)
		}
	}
	if _, err := tunnel.NewDialer(env); err == nil {
		t.Error("NewDialer without a hop succeeded")
	}
	if _, err := tunnel.NewDialer(env, tunnel.HopConfig{Address: "nonsense"}); err == nil {
		t.Error("NewDialer with a bad address succeeded")
	}
	env.ClientTLS = nil
	if _, err := tunnel.NewDialer(env, tunnel.HopConfig{Address: "a:1"}); err == nil {
		t.Error("NewDialer without TLS succeeded")
	}
}
