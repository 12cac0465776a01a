package tunneltest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest/memnet"
)

// Addresses of the hosts of a Pair.
const (
	EntryAddr = "10.0.0.1" // where apps and the entry gateway are
	ExitAddr  = "10.0.0.2" // where the exit gateway and its workloads are
)

// ExitListen is the address of the exit gateway's hbone listener.
const ExitListen = ExitAddr + ":15008"

// appsListener is the name of the entry's listener that Dial comes in by.
const appsListener = "apps"

// Options are how a Pair differs from the plain one; zero is plain.
type Options struct {
	// Entry and Exit change the configurations before the gateways are made.
	Entry, Exit func(*tunnel.Config)
	// EntryEnv and ExitEnv change the environments.
	EntryEnv, ExitEnv func(*tunnel.Env)
	// EntryID and ExitID are other identities than those of one namespace.
	EntryID, ExitID *Identity
	// Log gets the records of both gateways. Default: Pair.Log only.
	Log slog.Handler
}

// Pair is an entry and an exit gateway in one process, joined by TLS and HTTP/2 over a network in memory.
// Flows that are dialled at the entry come out at the exit, to its own addresses.
type Pair struct {
	// Net is the network; a test listens on it where a destination should be.
	Net *memnet.Net
	// Entry and Exit are the gateways.
	Entry, Exit *tunnel.Gateway
	// CA has signed both identities.
	CA *CA
	// Log has the records of both gateways, one line of text each.
	Log *Log
}

// NewPair starts a pair; it is closed when the test ends.
func NewPair(tb testing.TB, o Options) *Pair {
	tb.Helper()
	p := &Pair{Net: memnet.New(), CA: NewCA(tb), Log: &Log{}}
	if o.EntryID == nil {
		o.EntryID = p.CA.Issue(tb, "cluster.local", "default", "entry")
	}
	if o.ExitID == nil {
		o.ExitID = p.CA.Issue(tb, "cluster.local", "default", "exit")
	}
	if o.Log == nil {
		o.Log = slog.NewTextHandler(p.Log, nil)
	}
	exit := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: ExitListen}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"mesh"}, Destinations: []string{"local"}}},
	}
	entry := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: appsListener, Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"exit": {Address: ExitListen, Connections: 1}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{appsListener}, Via: []string{"exit"}}},
	}
	p.Exit = NewGateway(tb, p.Net, ExitAddr, o.ExitID, exit, o.Exit, o.ExitEnv, o.Log)
	p.Entry = NewGateway(tb, p.Net, EntryAddr, o.EntryID, entry, o.Entry, o.EntryEnv, o.Log)
	return p
}

// NewGateway starts a gateway on the host with the address addr; it is closed when the test ends. mend and
// mendEnv may change its configuration and environment, and may be nil.
func NewGateway(tb testing.TB, n *memnet.Net, addr string, id *Identity, cfg *tunnel.Config, mend func(*tunnel.Config),
	mendEnv func(*tunnel.Env), log slog.Handler) *tunnel.Gateway {
	tb.Helper()
	if mend != nil {
		mend(cfg)
	}
	env := tunnel.Env{
		Log: slog.New(log), Self: id.Self, ServerTLS: id.ServerTLS, ClientTLS: id.ClientTLS,
		Listen:  func(_ context.Context, s tunnel.Socket) (net.Listener, error) { return n.Listen(s.Address) },
		Dial:    n.From(netip.MustParseAddr(addr)),
		Resolve: n.Resolve,
	}
	if mendEnv != nil {
		mendEnv(&env)
	}
	g, err := tunnel.New(cfg, env)
	if err != nil {
		tb.Fatal(err)
	}
	if err := g.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.Close)
	return g
}

// Dial opens a flow at the entry gateway as an app on its host would, to target ("HOST:PORT"), and returns
// the app's end. It returns when the tunnel stands; the error of a refusal is the gateway's own, such as
// a *tunnel.RefusedError.
func (p *Pair) Dial(ctx context.Context, target string) (*memnet.Conn, error) {
	return Dial(ctx, p.Entry, appsListener, target)
}

// Dial opens a flow at g as if listener had captured it; see Pair.Dial.
func Dial(ctx context.Context, g *tunnel.Gateway, listener, target string) (*memnet.Conn, error) {
	t, err := tunnel.ParseAuthority(target)
	if err != nil {
		return nil, err
	}
	source := netip.AddrPortFrom(netip.MustParseAddr(EntryAddr), 50000)
	app, end := memnet.Pipe(source, netip.MustParseAddrPort("127.0.0.1:1080"))
	if err := carry(ctx, g, listener, source, t, end, false); err != nil {
		return nil, err
	}
	return app, nil
}

// carry gives g a flow from source to t, whose accepted end is end, and waits for the answer. Of an early one the app
// does not wait for that.
func carry(ctx context.Context, g *tunnel.Gateway, listener string, source netip.AddrPort, t tunnel.Target, end *memnet.Conn, early bool) error {
	a := &accepted{end: end, answer: make(chan error, 1), gone: ctx.Done(), early: early}
	// Ends with the flow, which the gateway's Close ends at the latest; Close waits for it.
	go g.Carry(&tunnel.Flow{Listener: listener, Way: "test", Source: source, Peer: g.Self(), Target: t}, a)
	return <-a.answer
}

// accepted is a flow that a test has dialled.
type accepted struct {
	end    *memnet.Conn
	answer chan error
	gone   <-chan struct{}
	early  bool
}

// Early is the app's end where the app does not wait for an answer.
func (a *accepted) Early() net.Conn {
	if !a.early {
		return nil
	}
	return a.end
}

func (a *accepted) Accept(*tunnel.Flow) (tunnel.Conn, []byte, error) {
	a.answer <- nil
	return tunnel.NewConn(a.end), nil, nil
}

func (a *accepted) Refuse(_ *tunnel.Flow, err error) { a.answer <- err }

func (a *accepted) Gone() <-chan struct{} { return a.gone }

// Echo listens on address and returns to every connection what it sends, until the test ends.
func (p *Pair) Echo(tb testing.TB, address string) { Echo(tb, p.Net, address) }

// Echo listens on address of n and returns to every connection what it sends, until the test ends.
func Echo(tb testing.TB, n *memnet.Net, address string) {
	tb.Helper()
	Serve(tb, n, address, func(c *memnet.Conn) {
		defer c.Close()
		if _, err := io.Copy(c, c); err == nil {
			_ = c.CloseWrite() // Close follows
		}
	})
}

// Serve listens on address of n and calls handle for every connection, in a goroutine, until the test ends.
func Serve(tb testing.TB, n *memnet.Net, address string, handle func(*memnet.Conn)) {
	tb.Helper()
	l, err := n.Listen(address)
	if err != nil {
		tb.Fatal(err)
	}
	var mu sync.Mutex
	open, over := make(map[*memnet.Conn]bool), false // guarded by mu
	done := make(chan struct{})
	go func() { // ends when the listener is closed and its connections are; the clean-up waits for it
		defer close(done)
		l.Serve(func(c *memnet.Conn) {
			mu.Lock()
			if open[c] = true; over {
				_ = c.Close() // it was accepted when the test ended
			}
			mu.Unlock()
			handle(c)
			mu.Lock()
			delete(open, c)
			mu.Unlock()
		})
	}()
	tb.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		over = true
		for c := range open {
			_ = c.Close() // it may be closed
		}
		mu.Unlock()
		<-done
	})
}

// Log keeps what is written to it, such as the output of a process, and may be read meanwhile.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends p.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String returns everything that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// ErrNotRefused is returned by Refusal when a flow was not refused.
var ErrNotRefused = errors.New("the flow was not refused")

// Refusal dials target, which must be refused, and returns why.
func (p *Pair) Refusal(ctx context.Context, target string) error {
	c, err := p.Dial(ctx, target)
	if err == nil {
		_ = c.Close()
		return ErrNotRefused
	}
	return err
}
