package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// authorizer is one outside, which allows what it is told to.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	denies    atomic.Bool
	asked     atomic.Int64
	principal atomic.Value // of the last question
	address   string
}

func (a *authorizer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.asked.Add(1)
	a.principal.Store(r.GetAttributes().GetSource().GetPrincipal())
	if a.denies.Load() {
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied), Message: "not today"}}, nil
	}
	return &authv3.CheckResponse{Status: &status.Status{}}, nil
}

func newAuthorizer(t *testing.T) *authorizer {
	t.Helper()
	ln := listenLoopback(t)
	a := &authorizer{address: ln.Addr().String()}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, a)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }() // ends with Stop; the cleanup waits for it
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return a
}

// askConfig is a configuration whose flows to target an authorizer has to allow.
func (r *reloadable) askConfig(authorizer string) string {
	return r.m.yaml("entry") + fmt.Sprintf(`admin: {address: "%s"}
listeners:
- {name: apps, kind: socks5, address: "%s"}
routes:
- {listeners: [apps], destinations: ["127.0.0.1"]}
policy:
  files: [ask.yaml]
  authorizers:
  - %s
`, r.admin, r.address, authorizer)
}

func newWithAuthorizer(t *testing.T, authorizer string) *reloadable {
	t.Helper()
	m := newMesh(t)
	r := &reloadable{m: m, target: echoServer(t), count: map[string]int{}}
	_, port, err := net.SplitHostPort(r.target)
	if err != nil {
		t.Fatal(err)
	}
	m.write("ask.yaml", []byte("rules:\n- {name: outside, action: ask, authorizer: opa, to: [{ports: [\""+port+"\"]}]}\n"))
	ln, adm := listenLoopback(t), listenLoopback(t)
	r.running = &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	r.file = m.write("gw.yaml", []byte(r.askConfig(authorizer)))
	r.process = gatewayProcess(t, "run", "-c", r.file).inherit(ln, adm).start()
	r.ready()
	return r
}

// An authorizer of the configuration is asked about flows that a rule wants it asked about, and a reload replaces it: live flows
// that the new one does not allow end.
func TestAuthorizer(t *testing.T) {
	a, b := newAuthorizer(t), newAuthorizer(t)
	entry := func(at string) string { return fmt.Sprintf(`{name: opa, address: "%s", timeout: 10s}`, at) }
	r := newWithAuthorizer(t, entry(a.address))
	flow, err := dialSOCKS(t, r.address, r.target)
	if err != nil {
		t.Fatal(err)
	}
	if err := echo(flow, "allowed"); err != nil {
		t.Fatal(err)
	}
	if got := a.principal.Load(); got != "spiffe://cluster.local/ns/default/sa/entry" {
		t.Errorf("asked about the principal %v", got)
	}
	r.metric(`culvert_asks_total{authorizer="opa",result="allowed"} 1`)

	a.denies.Store(true)
	if _, err := dialSOCKS(t, r.address, r.target); err == nil {
		t.Error("a flow passes that the authorizer denies")
	}
	r.metric(`culvert_asks_total{authorizer="opa",result="denied"} 1`)
	if log := r.stderr.String(); !strings.Contains(log, "rule=ask/opa") || !strings.Contains(log, "not today") {
		t.Errorf("the log does not name the authorizer and what it says:\n%s", log)
	}
	if err := echo(flow, "lives on"); err != nil {
		t.Errorf("the live flow: %v", err)
	}

	r.change(r.askConfig(`{name: opa, address: "10.0.0.1:9191"}`), "failed")
	if log := r.stderr.String(); !strings.Contains(log, "/gw.yaml:10") || !strings.Contains(log, "write tls: {mode: mtls}") {
		t.Errorf("the log does not say place and fault:\n%s", log)
	}
	r.change(r.askConfig(entry(a.address)[:len(entry(a.address))-1]+", tls: {mode: tls, roots: absent.pem}}"), "failed")
	r.change(r.askConfig(strings.Replace(entry(a.address), "opa", "other", 1)), "failed")
	if log := r.stderr.String(); !strings.Contains(log, "/ask.yaml:2") || !strings.Contains(log, `is no authorizer that this gateway knows`) {
		t.Errorf("the log does not say who is missing:\n%s", log)
	}

	r.change(r.askConfig(entry(b.address)), "ok")
	next, err := dialSOCKS(t, r.address, r.target)
	if err != nil {
		t.Fatalf("a flow that the new authorizer allows: %v", err)
	}
	eventually(t, "question about the live flow", func() error {
		if n := b.asked.Load(); n != 2 {
			return fmt.Errorf("%d questions, want 2", n)
		}
		return nil
	})
	for _, nc := range []net.Conn{flow, next} {
		if err := echo(nc, "still"); err != nil {
			t.Errorf("a live flow: %v", err)
		}
	}
	b.denies.Store(true)
	r.signal(syscall.SIGHUP)
	r.reloaded("ok")
	for _, nc := range []net.Conn{flow, next} {
		eventually(t, "end of a live flow that is denied now", func() error {
			if echo(nc, "over?") == nil {
				return errors.New("it lives")
			}
			return nil
		})
	}
}
