package pki

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// workloadAPIWait is how long a start waits for the first identity of the Workload API: an agent that has just started
// may still be asking its server for it.
const workloadAPIWait = 30 * time.Second

// OpenWorkloadAPI takes the identity, and the CAs of its trust domain and of those that it is federated with, from the
// SPIFFE Workload API at cfg.WorkloadAPI, and follows what that sends. It blocks for the first answer, at most half a
// minute or until ctx ends. When the API goes away later, what it has given stays current and the log says why, once.
// Close ends the Source.
func OpenWorkloadAPI(ctx context.Context, cfg Config, log *slog.Logger) (*Source, error) {
	fail := func(reason Reason, err error, detail, mend string) error {
		return &ConfigError{Field: "workloadAPI", File: cfg.WorkloadAPI, Reason: reason, Err: err, Detail: detail, Mend: mend}
	}
	if err := checkWorkloadAPI(cfg.WorkloadAPI); err != nil {
		return nil, err
	}
	w := &workloadAPI{log: log, first: make(chan struct{})}
	s := newSource(log, &Config{Poll: cfg.Poll, Trust: cfg.Trust, State: cfg.State}, w.load)
	w.source = s
	watching, end := context.WithCancel(context.Background())
	client, err := workloadapi.New(watching, workloadapi.WithAddr(cfg.WorkloadAPI))
	if err != nil {
		end()
		return nil, fail(Unreadable, err, "cannot be used", "check the address")
	}
	ended := make(chan struct{})
	go func() { // ends with watching, which s.end cancels and waits for
		defer close(ended)
		_ = client.WatchX509Context(watching, w) // its errors went to w
		_ = client.Close()
	}()
	s.end = func() {
		end()
		<-ended
	}
	timeout, cancel := context.WithTimeout(ctx, workloadAPIWait)
	defer cancel()
	select {
	case <-w.first:
	case <-timeout.Done():
		s.end()
		return nil, fail(Unreadable, w.lastError(), "gives no identity", "see whether the agent runs, whether this user may use its socket, and whether an entry selects this process")
	}
	if s, err = s.start(); err != nil {
		w.source.end()
		return nil, err
	}
	return s, nil
}

// checkWorkloadAPI refuses what is no address of a Workload API (SPIFFE Workload Endpoint, section 4).
func checkWorkloadAPI(address string) error {
	if err := workloadapi.ValidateAddress(address); err != nil {
		return &ConfigError{Field: "workloadAPI", File: address, Reason: BadValue, Err: err, Detail: "is no address", Mend: "write it like unix:///run/spire/agent.sock"}
	}
	return nil
}

// workloadAPI keeps the last answer of a Workload API.
type workloadAPI struct {
	log    *slog.Logger
	source *Source

	last   atomic.Pointer[workloadapi.X509Context]
	first  chan struct{} // closed with the first answer
	opened sync.Once

	mu  sync.Mutex
	err error // the last one, nil after an answer; guarded by mu
}

// OnX509ContextUpdate takes an answer.
func (w *workloadAPI) OnX509ContextUpdate(x *workloadapi.X509Context) {
	w.mu.Lock()
	w.err = nil
	w.mu.Unlock()
	w.last.Store(x)
	w.opened.Do(func() { close(w.first) })
	w.source.push()
}

// OnX509ContextWatchError takes notice that there is none.
func (w *workloadAPI) OnX509ContextWatchError(err error) {
	if status.Code(err) == codes.Canceled {
		return // by us
	}
	w.mu.Lock()
	again := w.err != nil && w.err.Error() == err.Error()
	w.err = err
	w.mu.Unlock()
	switch {
	case again:
	case status.Code(err) == codes.PermissionDenied:
		w.log.Error("the Workload API gives this process no identity any more, the one that is there ends with its certificate", "err", err)
	default:
		w.log.Warn("the Workload API does not answer, what it has given stays", "err", err)
	}
}

func (w *workloadAPI) lastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// load makes a Material of the last answer. Of several identities the first one is meant for workloads that take one
// (SPIFFE Workload API, section 4.2.1).
func (w *workloadAPI) load() (*Material, error) {
	x := w.last.Load()
	svid := x.DefaultSVID()
	fail := func(err error, format string, args ...any) error {
		return &ConfigError{Field: "workloadAPI", Reason: BadFormat, Err: err, Detail: fmt.Sprintf(format, args...), Mend: "see the log of its agent"}
	}
	cert, key, err := svid.Marshal()
	if err != nil {
		return nil, fail(err, "the identity that it gave cannot be used")
	}
	roots := make(map[string][]byte) // by trust domain
	for _, bundle := range x.Bundles.Bundles() {
		if n := len(bundle.X509Authorities()); n > maxRoots {
			return nil, fail(nil, "trust domain %s has %d CAs; at most %d are taken", bundle.TrustDomain().Name(), n, maxRoots)
		}
		for _, ca := range bundle.X509Authorities() {
			roots[bundle.TrustDomain().Name()] = append(roots[bundle.TrustDomain().Name()], encodeCert(ca.Raw)...)
		}
	}
	own := svid.ID.TrustDomain().Name()
	m, err := Parse(cert, key, roots[own])
	if err != nil {
		return nil, err
	}
	delete(roots, own)
	m.federated = make(map[string]*x509.CertPool)
	texts := [][]byte{m.own[:]}
	for _, td := range sortedKeys(roots) {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(roots[td]) // it was read from certificates
		m.federated[td] = pool
		texts = append(texts, []byte(td), roots[td])
	}
	m.digest = digest(texts...)
	return m, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
