package extauthz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"culvert/policy"
)

func TestAsk(t *testing.T) {
	for _, tt := range []struct {
		name, answer, reason string
		allow                bool
		headers              int
		stats                Stats
	}{
		{"allow", sets("x-team", "blue", ""), "authorizer opa allows it", true, 1, Stats{Allowed: 1}},
		{"deny", `status { code: 7 } denied_response { status { code: Forbidden } headers { header { key: "x-why" value: "no" } } body: "not <you>\n" }`,
			`authorizer opa refuses it with status 403, saying "not <you>"`, false, 0, Stats{Denied: 1}},
		{"says nothing", ``, "it has no status", false, 0, Stats{Failed: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := answers(t, tt.answer)
			c := newTestClient(t, Config{Address: a.addr, Timeout: long}, Env{})
			d := ask(t, c)
			if d.Allow != tt.allow || d.Policy != "ask" || d.Rule != "ask/opa" || !strings.Contains(d.Reason, tt.reason) {
				t.Errorf("Ask = %+v, want allow %v by ask/opa with %q", d, tt.allow, tt.reason)
			}
			if (d.Obligations != nil) != (tt.headers > 0) || d.Obligations != nil && len(d.Obligations.Headers) != tt.headers {
				t.Errorf("obligations = %+v, want %d headers", d.Obligations, tt.headers)
			}
			s := c.Stats()
			if (s.Latency > 0) != (s.Allowed+s.Denied > 0) {
				t.Errorf("latency = %v of %d answers", s.Latency, s.Allowed+s.Denied)
			}
			if s.Latency = 0; s != tt.stats {
				t.Errorf("Stats = %+v, want %+v", s, tt.stats)
			}
		})
	}
}

// What arrives is what the hop knows, and the fields that are listed.
func TestAskShows(t *testing.T) {
	seen := make(chan *authv3.CheckRequest, 1)
	a := serve(t, listen(t, "127.0.0.1:0"), func(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		seen <- r
		return &authv3.CheckResponse{}, nil
	})
	c := newTestClient(t, Config{Address: a.addr, Timeout: long, Headers: []string{"Authorization"}}, Env{})
	c.Ask(t.Context(), &policy.Request{Peer: id(t, "spiffe://cluster.local/ns/a/sa/b"), HTTP: &policy.HTTP{
		Method: "GET", Path: "/x", Host: "h", Header: headersOf(map[string]string{"authorization": "Bearer t", "cookie": "c"}),
	}})
	r := (<-seen).GetAttributes()
	if got := r.GetSource().GetPrincipal(); got != "spiffe://cluster.local/ns/a/sa/b" {
		t.Errorf("principal = %q", got)
	}
	if h := r.GetRequest().GetHttp(); h.GetMethod() != "GET" || h.GetPath() != "/x" || len(h.GetHeaders()) != 1 || h.GetHeaders()["authorization"] != "Bearer t" {
		t.Errorf("request = %v", h)
	}
}

// Errors of gRPC are refusals that say what to look at.
func TestAskFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		check func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
		want  string
	}{
		{"unimplemented", authv3.UnimplementedAuthorizationServer{}.Check, "does not serve envoy.service.auth.v3.Authorization"},
		{"unauthenticated", failsWith(codes.Unauthenticated, "who?"), "what credentials it wants"},
		{"internal", failsWith(codes.Internal, "oh\nno"), "it failed (Internal: oh no); see its log"},
		{"a code that nobody knows", failsWith(77, "x"), "it failed (Code(77): x)"},
		{"cancelled by itself", failsWith(codes.Canceled, "x"), "it failed (Canceled: x)"},
		{"overloaded", failsWith(codes.ResourceExhausted, "x"), "it is at a limit"},
		{"long message", failsWith(codes.Internal, strings.Repeat("x", 10_000)), "…"},
		{"long trailers", func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			md := metadata.MD{}
			for i := range 20 {
				md.Append(fmt.Sprintf("x-%d", i), strings.Repeat("x", 1000))
			}
			return &authv3.CheckResponse{}, grpc.SetTrailer(ctx, md)
		}, "it failed (Internal"},
		{"huge answer", func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Body: strings.Repeat("x", 1<<20)}}}, nil
		}, "its answer is longer than 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := serve(t, listen(t, "127.0.0.1:0"), tt.check)
			c := newTestClient(t, Config{Address: a.addr, Timeout: long}, Env{})
			d := ask(t, c)
			if d.Allow || d.Rule != "ask/opa" || !strings.Contains(d.Reason, tt.want) || len(d.Reason) > 600 {
				t.Errorf("Ask = %+v, want a refusal with %q", d, tt.want)
			}
			if s := c.Stats(); s.Failed != 1 {
				t.Errorf("Stats = %+v, want one failure", s)
			}
		})
	}
}

func failsWith(code codes.Code, message string) func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return nil, status.Error(code, message)
	}
}

// rawBytes is a message that is on the wire what it is here.
type rawBytes struct{}

func (rawBytes) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (rawBytes) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (rawBytes) Name() string                       { return "proto" }

// An answer that is no CheckResponse is a failure, and so is a server that is none of gRPC.
func TestAskGarbage(t *testing.T) {
	t.Run("message", func(t *testing.T) {
		ln := listen(t, "127.0.0.1:0")
		s := grpc.NewServer(grpc.ForceServerCodec(rawBytes{}), grpc.WaitForHandlers(true), grpc.UnknownServiceHandler(func(_ any, st grpc.ServerStream) error {
			var in []byte
			if err := st.RecvMsg(&in); err != nil {
				return err
			}
			out := []byte("\xff\xff\xffgarbage")
			return st.SendMsg(&out)
		}))
		var served sync.WaitGroup
		served.Go(func() { _ = s.Serve(ln) }) // ends with Stop
		defer served.Wait()
		defer s.Stop()
		c := newTestClient(t, Config{Address: ln.Addr().String(), Timeout: long}, Env{})
		if d := ask(t, c); d.Allow || !strings.Contains(d.Reason, "it failed (Internal") {
			t.Errorf("Ask = %+v, want a refusal", d)
		}
	})
	t.Run("connection", func(t *testing.T) {
		ln := listen(t, "127.0.0.1:0")
		var served sync.WaitGroup
		served.Go(func() { // ends with the listener
			for {
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = nc.Write([]byte("SSH-2.0-OpenSSH_9.9\r\n" + strings.Repeat("\x00\xff", 4096)))
				_ = nc.Close()
			}
		})
		defer served.Wait()
		defer ln.Close()
		c := newTestClient(t, Config{Address: ln.Addr().String(), Timeout: long}, Env{})
		if d := ask(t, c); d.Allow || !strings.Contains(d.Reason, "it cannot be reached") {
			t.Errorf("Ask = %+v, want a refusal", d)
		}
	})
}

// A server that is slow, or says nothing at all, costs some flows the whole timeout and then none.
func TestAskWithoutAnswer(t *testing.T) {
	silent := func(t *testing.T) string { // accepts, and says nothing
		ln := listen(t, "127.0.0.1:0")
		var served sync.WaitGroup
		var conns []net.Conn // owned by the goroutine
		served.Go(func() {   // ends with the listener
			for {
				nc, err := ln.Accept()
				if err != nil {
					for _, nc := range conns {
						_ = nc.Close()
					}
					return
				}
				conns = append(conns, nc)
			}
		})
		t.Cleanup(func() {
			_ = ln.Close()
			served.Wait()
		})
		return ln.Addr().String()
	}
	for _, tt := range []struct {
		name string
		addr func(*testing.T) string
	}{
		{"slow", func(t *testing.T) string { return serve(t, listen(t, "127.0.0.1:0"), blocks).addr }},
		{"silent", silent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log strings.Builder
			c := newTestClient(t, Config{Address: tt.addr(t), Timeout: 20 * time.Millisecond}, Env{Log: slog.New(slog.NewTextHandler(&log, nil))})
			for i := range failuresToRest {
				if d := ask(t, c); d.Allow || !strings.Contains(d.Reason, "no answer within 20ms") {
					t.Fatalf("Ask %d = %+v, want that it takes too long", i, d)
				}
			}
			d := ask(t, c)
			if d.Allow || !strings.Contains(d.Reason, "left alone after failures in a row (no answer within 20ms") {
				t.Errorf("Ask after failures = %+v, want that it is left alone", d)
			}
			if s := c.Stats(); s.Timeouts != failuresToRest || s.Skipped != 1 {
				t.Errorf("Stats = %+v, want %d timeouts and one that was skipped", s, failuresToRest)
			}
			if n := strings.Count(log.String(), "authorizer does not answer"); n != 1 || !strings.Contains(log.String(), "rule=ask/opa") {
				t.Errorf("the log says it %d times, want once:\n%s", n, &log)
			}
		})
	}
}

// A server that dies during a question has not allowed the flow; when it is back it is asked again.
func TestAskAcrossARestart(t *testing.T) {
	begun := make(chan struct{})
	first := serve(t, listen(t, "127.0.0.1:0"), func(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		close(begun)
		return blocks(ctx, r)
	})
	c := newTestClient(t, Config{Address: first.addr, Timeout: long}, Env{})
	done := make(chan policy.Decision, 1)
	go func() { done <- ask(t, c) }() // ends with the server
	<-begun
	first.server.Stop()
	if d := <-done; d.Allow || !strings.Contains(d.Reason, "it cannot be reached, or ended the connection") {
		t.Errorf("Ask of a server that dies = %+v, want a refusal", d)
	}
	until(t, "rest", func() bool { return strings.Contains(ask(t, c).Reason, "left alone") })
	serve(t, listen(t, first.addr), func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return answerOf(t, "status {}"), nil
	})
	until(t, "the new server is asked", func() bool { return ask(t, c).Allow })
	if d := ask(t, c); !d.Allow {
		t.Errorf("Ask after the restart = %+v", d)
	}
}

func TestAskOverASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return answerOf(t, "status {}"), nil
	})
	c := newTestClient(t, Config{Address: "unix:" + path, Timeout: long}, Env{})
	if d := ask(t, c); !d.Allow {
		t.Errorf("Ask = %+v", d)
	}
}

// However many flows ask, the server is asked so many at once, and all get their answer.
func TestAskManyAtOnce(t *testing.T) {
	const flows, atOnce = 1000, 7
	a := serve(t, listen(t, "127.0.0.1:0"), func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return answerOf(t, "status {}"), nil
	})
	c := newTestClient(t, Config{Address: a.addr, Timeout: long, MaxInFlight: atOnce}, Env{})
	var allowed atomic.Int64
	var all sync.WaitGroup
	for range flows {
		all.Go(func() {
			if ask(t, c).Allow {
				allowed.Add(1)
			}
		})
	}
	all.Wait()
	if allowed.Load() != flows || a.asked.Load() != flows || a.most.Load() > atOnce {
		t.Errorf("%d of %d flows allowed, %d asked, %d at once; want %d at most", allowed.Load(), flows, a.asked.Load(), a.most.Load(), atOnce)
	}
}

// A flow that gets no turn is refused in time, and that says nothing about the server.
func TestAskWithoutATurn(t *testing.T) {
	a := serve(t, listen(t, "127.0.0.1:0"), blocks)
	c := newTestClient(t, Config{Address: a.addr, Timeout: long, MaxInFlight: 1}, Env{})
	ctx, end := context.WithCancel(t.Context())
	done := make(chan policy.Decision, 1)
	go func() { done <- c.Ask(ctx, &policy.Request{Port: 1}) }() // ends with ctx
	until(t, "the first is asked", func() bool { return a.inFlight.Load() == 1 })
	c.timeout = 10 * time.Millisecond
	for range 2 * failuresToRest {
		if d := ask(t, c); d.Allow || !strings.Contains(d.Reason, "1 questions were under way") {
			t.Fatalf("Ask = %+v, want that it has no turn", d)
		}
	}
	if s := c.Stats(); s.InFlight != 1 || s.Timeouts != 2*failuresToRest || s.Skipped != 0 {
		t.Errorf("Stats = %+v", s)
	}
	end()
	if d := <-done; d.Allow || !strings.Contains(d.Reason, "nobody waits") {
		t.Errorf("Ask of a flow that has gone = %+v", d)
	}
}

// Flows that go away say nothing about the authorizer, and it hears that they have gone.
func TestAskWithdrawn(t *testing.T) {
	a := serve(t, listen(t, "127.0.0.1:0"), blocks)
	c := newTestClient(t, Config{Address: a.addr, Timeout: long}, Env{})
	for i := range 2 * failuresToRest {
		ctx, end := context.WithCancel(t.Context())
		done := make(chan policy.Decision, 1)
		go func() { done <- c.Ask(ctx, &policy.Request{Port: 1}) }() // ends with ctx
		until(t, "it is asked", func() bool { return a.asked.Load() == int64(i+1) })
		end()
		if d := <-done; d.Allow || !strings.Contains(d.Reason, "nobody waits for the flow any more") {
			t.Fatalf("Ask = %+v", d)
		}
		until(t, "it hears of it", func() bool { return a.inFlight.Load() == 0 })
	}
	if s := c.Stats(); s.Withdrawn != 2*failuresToRest {
		t.Errorf("Stats = %+v", s)
	}
	gone, end := context.WithCancel(t.Context())
	end()
	if d := c.Ask(gone, &policy.Request{Port: 1}); d.Allow {
		t.Errorf("Ask of a flow that has gone before = %+v", d)
	}
}

// Close waits for the questions under way, and takes no more.
func TestCloseWaits(t *testing.T) {
	answer := make(chan struct{})
	a := serve(t, listen(t, "127.0.0.1:0"), func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		<-answer
		return answerOf(t, "status {}"), nil
	})
	c := newTestClient(t, Config{Address: a.addr, Timeout: long}, Env{})
	done := make(chan policy.Decision, 1)
	go func() { done <- ask(t, c) }() // ends with answer
	until(t, "it is asked", func() bool { return a.inFlight.Load() == 1 })
	closed := make(chan struct{})
	go func() { // ends after the question
		c.Close()
		close(closed)
	}()
	until(t, "it takes no more", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.closed
	})
	if d := ask(t, c); d.Allow || !strings.Contains(d.Reason, "being replaced") {
		t.Errorf("Ask after Close = %+v", d)
	}
	select {
	case <-closed:
		t.Error("Close does not wait")
	default:
	}
	close(answer)
	if d := <-done; !d.Allow {
		t.Errorf("the question under way = %+v", d)
	}
	<-closed
}

// Connections are made by Env.Dial, and a fault of it is told.
func TestDialIsInjected(t *testing.T) {
	c := newTestClient(t, Config{Address: "authz.example:9191", TLS: TLSConfig{Mode: "none"}, Timeout: long}, Env{
		Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			return nil, errors.New("no way to " + network + " " + address)
		},
	})
	if d := ask(t, c); d.Allow || !strings.Contains(d.Reason, "no way to tcp authz.example:9191") {
		t.Errorf("Ask = %+v", d)
	}
}

func BenchmarkAsk(b *testing.B) {
	answer := answerOf(b, "status {}")
	a := serve(b, listen(b, "127.0.0.1:0"), func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) { return answer, nil })
	c := newTestClient(b, Config{Address: a.addr, Timeout: long}, Env{})
	r := &policy.Request{Peer: id(b, "spiffe://cluster.local/ns/shop/sa/alice"), Host: "db.internal", Port: 5432, Listener: "mesh"}
	b.ReportAllocs()
	for b.Loop() {
		if d := c.Ask(b.Context(), r); !d.Allow {
			b.Fatal(d.Reason)
		}
	}
}
