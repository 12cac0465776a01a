package pki

import (
	"context"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// fakeAgent is a Workload API that gives one identity, and sends a new one when the test has it.
type fakeAgent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	t      *testing.T
	socket string

	mu      sync.Mutex
	now     *workload.X509SVIDResponse // nil: this workload has none
	changed chan struct{}
	server  *grpc.Server
}

func newFakeAgent(t *testing.T) *fakeAgent {
	t.Helper()
	a := &fakeAgent{t: t, socket: filepath.Join(t.TempDir(), "agent.sock"), changed: make(chan struct{})}
	a.start()
	t.Cleanup(func() { a.stop() })
	return a
}

func (a *fakeAgent) start() {
	a.t.Helper()
	ln, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.server = grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(a.server, a)
	go func() { _ = a.server.Serve(ln) }() // ends with stop
}

func (a *fakeAgent) stop() {
	a.server.Stop()
	_ = os.Remove(a.socket)
}

// FetchX509SVID sends what there is, and again when it changes.
func (a *fakeAgent) FetchX509SVID(_ *workload.X509SVIDRequest, s grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if md, _ := metadata.FromIncomingContext(s.Context()); strings.Join(md.Get("workload.spiffe.io"), "") != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	for {
		a.mu.Lock()
		now, changed := a.now, a.changed
		a.mu.Unlock()
		if now == nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err := s.Send(now); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

// give sends an identity of ca, with the CAs of other trust domains.
func (a *fakeAgent) give(ca *CA, id string, federated ...*CA) {
	a.t.Helper()
	certPEM, keyPEM, err := ca.Issue(mustID(a.t, id), time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, _ := pem.Decode(certPEM)
	key, _ := pem.Decode(keyPEM)
	next := &workload.X509SVIDResponse{
		Svids:            []*workload.X509SVID{{SpiffeId: id, X509Svid: cert.Bytes, X509SvidKey: key.Bytes, Bundle: ca.cert.Raw}},
		FederatedBundles: map[string][]byte{},
	}
	for _, other := range federated {
		next.FederatedBundles["spiffe://"+other.TrustDomain()] = other.cert.Raw
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = next
	close(a.changed)
	a.changed = make(chan struct{})
}

func TestWorkloadAPI(t *testing.T) {
	agent := newFakeAgent(t)
	ca, partner := mustCA(t, testTD), mustCA(t, "partner.example")
	agent.give(ca, "spiffe://cluster.local/ns/default/sa/a", partner)
	logs, log := newLogs()
	s, err := Open(t.Context(), Config{WorkloadAPI: "unix://" + agent.socket}, "host", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if got := s.ID().String(); got != "spiffe://cluster.local/ns/default/sa/a" {
		t.Errorf("the identity is %s", got)
	}
	if got := doubted(t, s, spiffeLeaf(t, partner, "spiffe://partner.example/ns/a/sa/b")); got != "" {
		t.Errorf("a peer of a federated trust domain is refused as %q", got)
	}
	other := fixedSource(t, ca, "spiffe://cluster.local/ns/default/sa/other")
	before := handshake(t, s.ServerTLS(nil), other.ClientTLS(nil))
	if before.clientErr != nil {
		t.Fatal(before.clientErr)
	}

	changed, old := s.Changed(), s.Current().Certificate.Leaf.SerialNumber
	agent.give(ca, "spiffe://cluster.local/ns/default/sa/a") // renewed, and the federation is over
	wait(t, changed)
	if s.Current().Certificate.Leaf.SerialNumber.Cmp(old) == 0 {
		t.Error("the new identity is not in use")
	}
	if got := doubted(t, s, spiffeLeaf(t, partner, "spiffe://partner.example/ns/a/sa/b")); got != OtherDomain {
		t.Errorf("after the federation the peer is refused as %q, want %q", got, OtherDomain)
	}
	before.echo(t)

	// The agent goes away and comes back.
	agent.stop()
	for deadline := time.Now().Add(20 * time.Second); logs.count("does not answer") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing was logged of the agent's end")
		}
	}
	before.echo(t)
	changed = s.Changed()
	agent.start()
	agent.give(ca, "spiffe://cluster.local/ns/default/sa/a")
	wait(t, changed)
}

func TestWorkloadAPIWithoutIdentity(t *testing.T) {
	agent := newFakeAgent(t)
	_, log := newLogs()
	for _, tt := range []struct{ name, address, want string }{
		{"no entry", "unix://" + agent.socket, "PermissionDenied"},
		{"no agent", "unix://" + agent.socket + "x", "no such file"},
		{"no address", "agent.sock", "is no address"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		_, err := Open(ctx, Config{WorkloadAPI: tt.address}, "host", log)
		cancel()
		var file *ConfigError
		if !errors.As(err, &file) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Open = %v, want %q", tt.name, err, tt.want)
		}
	}
}

// What an agent sends is checked as files are: a wrong answer leaves the identity that is there.
func TestWorkloadAPIThatLies(t *testing.T) {
	agent := newFakeAgent(t)
	ca, other := mustCA(t, testTD), mustCA(t, testTD)
	agent.give(ca, "spiffe://cluster.local/ns/default/sa/a")
	logs, log := newLogs()
	s, err := Open(t.Context(), Config{WorkloadAPI: "unix://" + agent.socket}, "host", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	serial := s.Current().Certificate.Leaf.SerialNumber
	agent.mu.Lock()
	_, keyPEM, err := other.Issue(mustID(t, "spiffe://cluster.local/ns/default/sa/a"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := pem.Decode(keyPEM)
	was := agent.now.Svids[0]
	agent.now = &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: was.SpiffeId, X509Svid: was.X509Svid, X509SvidKey: key.Bytes, Bundle: was.Bundle}}}
	close(agent.changed)
	agent.changed = make(chan struct{})
	agent.mu.Unlock()
	for deadline := time.Now().Add(20 * time.Second); logs.count("WARN") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing was logged of the wrong answer")
		}
	}
	if s.Current().Certificate.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Error("a key that is not the certificate's was taken")
	}
}
