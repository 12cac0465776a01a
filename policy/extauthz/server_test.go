package extauthz

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"

	"culvert/policy"
)

// long is a timeout that no test reaches that does not mean to.
const long = mostTimeout

// authorizer is a server of ext_authz that a test runs.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	check  func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
	server *grpc.Server
	addr   string

	asked, inFlight, most atomic.Int64
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.asked.Add(1)
	n := a.inFlight.Add(1)
	defer a.inFlight.Add(-1)
	for old := a.most.Load(); n > old && !a.most.CompareAndSwap(old, n); old = a.most.Load() {
	}
	return a.check(ctx, r)
}

// serve runs a server on ln until the test ends.
func serve(tb testing.TB, ln net.Listener, check func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error), options ...grpc.ServerOption) *authorizer {
	tb.Helper()
	a := &authorizer{check: check, addr: ln.Addr().String(), server: grpc.NewServer(append(options, grpc.WaitForHandlers(true))...)}
	authv3.RegisterAuthorizationServer(a.server, a)
	done := make(chan error, 1)
	go func() { done <- a.server.Serve(ln) }() // ends with Stop, in the clean-up, which waits for it
	tb.Cleanup(func() {
		a.server.Stop()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return a
}

// listen opens a port of loopback.
func listen(tb testing.TB, address string) net.Listener {
	tb.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	return ln
}

// answers is a server that always answers the same.
func answers(tb testing.TB, text string) *authorizer {
	tb.Helper()
	answer := answerOf(tb, text)
	return serve(tb, listen(tb, "127.0.0.1:0"), func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) { return answer, nil })
}

// blocks is a check that ends when the asker has gone.
func blocks(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// newTestClient makes a client that is closed when the test ends.
func newTestClient(tb testing.TB, cfg Config, env Env) *Client {
	tb.Helper()
	if cfg.Name == "" {
		cfg.Name = "opa"
	}
	c, err := New(&cfg, env)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// ask asks about a flow.
func ask(tb testing.TB, c *Client) policy.Decision {
	return c.Ask(tb.Context(), &policy.Request{Host: "db.internal", Port: 5432, Listener: "mesh"})
}

// until waits for what has no event.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: not within 10s", what)
		}
	}
}
