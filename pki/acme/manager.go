package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// timing is how a Manager paces itself.
type timing struct {
	firstRetry time.Duration // the delay after a first failure; it doubles with each
	orderLimit time.Duration // how long one order may take from end to end
	followPoll time.Duration // how often a process that does not order looks at the lock and at the files
}

// defaultTiming is what Open uses. CAs validate within seconds; an order that hangs is given up after five minutes,
// which at a look a second is 300 requests.
func defaultTiming() timing {
	return timing{firstRetry: time.Minute, orderLimit: 5 * time.Minute, followPoll: 5 * time.Second}
}

// Env is what a Manager gets from its owner.
type Env struct {
	// Dir is the folder for account and certificates. It is made with mode 0700 if need be.
	Dir string
	// Log gets what is issued, and what is not and why.
	Log *slog.Logger
	// DialContext opens connections to the CA. Default that of net.Dialer; proxies of the environment are not used.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Manager keeps a certificate for each name. All methods may be called at any time from any goroutine.
type Manager struct {
	// immutable after open
	cfg     Config
	log     *slog.Logger
	timing  timing
	store   store
	http    *http.Client
	mac     []byte            // the external account's key, nil if there is none
	entries []*entry          // in the order of the configuration
	byName  map[string]*entry // by name in lower case
	cancel  context.CancelFunc
	done    chan struct{} // closed when manageLoop has ended
	wake    chan struct{} // holds one: an order has ended

	account chan *account // holds one: who takes it may speak with the CA about it
	answers answers
	orders  orderBook

	mu        sync.Mutex
	changed   chan struct{} // guarded by mu: closed at the next change
	following bool          // guarded by mu: another process orders
}

// entry is one name. At most one order for it is under way.
type entry struct {
	name string // immutable
	cert atomic.Pointer[kept]

	// guarded by Manager.mu
	working  bool      // an order is under way
	failures int       // since the last success
	nextTry  time.Time // no order before it
	lastErr  error     // nil after a success
	issued   uint64
	failed   uint64

	// owned by the order under way
	turn    int    // which of Config.Challenges comes first
	unsaved []byte // the PEM text of cert that could not be written, nil if it was

	// owned by manageLoop
	warnedSoon, warnedOver *kept  // the certificates whose coming end and end were logged
	readErr                string // the failure to read the file that was logged last
}

// kept is a certificate in use. It is immutable.
type kept struct {
	cert     *tls.Certificate
	renewAt  time.Time
	info     fs.FileInfo // the file that it was read from, nil if it was issued by this process
	notAfter time.Time
}

// Status is the state of a name.
type Status struct {
	Name      string
	NotBefore time.Time // of the certificate in use, zero without one
	NotAfter  time.Time // of the certificate in use, zero without one; it may be over
	LastError error     // why the last order failed, an *IssueError; nil after a success and before the first order
	NextTry   time.Time // when the next order is made; zero while one is under way or another process orders
	Issued    uint64    // certificates that this process got
	Failed    uint64    // orders of this process that failed
}

// Open reads what dir has and starts to order what is missing or due. It returns at once; the names without a
// certificate get theirs in the background. Every problem of the settings and the files that they name is reported
// at once, joined, each a *ConfigError. What is wrong in the folder is reported too if it cannot be used at all;
// otherwise it is logged and tried again. The owner puts GetCertificate, and for the challenges GetConfigForClient
// or HTTPHandler, into its listeners, best before Open's orders can reach them: a validation that finds no listener
// fails, and the next try comes a minute later. Close ends it.
func Open(cfg Config, env Env) (*Manager, error) { return open(cfg, env, defaultTiming()) }

func open(cfg Config, env Env, timing timing) (*Manager, error) {
	m := &Manager{
		cfg: cfg, log: env.Log, timing: timing,
		byName: make(map[string]*entry), done: make(chan struct{}), wake: make(chan struct{}, 1), changed: make(chan struct{}),
		account: make(chan *account, 1),
		answers: answers{http: make(map[string]string), alpn: make(map[string]*tls.Certificate)},
	}
	m.account <- &account{}
	if err := m.prepare(env); err != nil {
		return nil, err
	}
	for _, name := range cfg.Names {
		e := &entry{name: lowerASCII(name)}
		m.entries = append(m.entries, e)
		m.byName[e.name] = e
		m.refresh(e)
	}
	m.orders = orderBook{path: m.store.ordersPath(), limit: cfg.ordersPerHour(), times: make(map[string][]int64)}
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	// Close ends it and waits for it.
	go m.manageLoop(ctx)
	return m, nil
}

// prepare checks the settings and reads what they name.
func (m *Manager) prepare(env Env) (err error) {
	var roots *x509.CertPool
	var errs errorList
	errs.add(m.cfg.Validate())
	if m.cfg.Roots != "" {
		roots, err = readRoots(m.cfg.Roots)
		errs.add(err)
	}
	if m.cfg.ExternalAccount.KeyFile != "" {
		m.mac, err = readMAC(m.cfg.ExternalAccount.KeyFile, m.log)
		errs.add(err)
	}
	if err := errs.join(); err != nil {
		return err // before a folder is made
	}
	if m.store, err = openStore(env.Dir, m.cfg.directory()); err != nil {
		return err
	}
	dial := env.DialContext
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	m.http, err = newHTTPClient(m.cfg.directory(), roots, dial)
	return err
}

// GetCertificate is made for tls.Config.GetCertificate: it returns the certificate for the server name of hello, and for
// a handshake of the CA that validates a name (see GetConfigForClient) the answer to that. It does not block and
// orders nothing. The error is a *NameError; the client gets the alert internal_error, so that a listener which wants
// unrecognized_name has to look at Reason itself.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" {
		return nil, &NameError{Reason: NoName}
	}
	name := lowerASCII(hello.ServerName)
	if isValidation(hello) {
		if cert := m.answers.certificate(name); cert != nil {
			return cert, nil
		}
		return nil, &NameError{Name: name, Reason: NoChallenge}
	}
	e := m.byName[name]
	if e == nil {
		return nil, &NameError{Name: name, Reason: UnknownName}
	}
	k := e.cert.Load()
	if k == nil {
		return nil, &NameError{Name: name, Reason: NotIssued, Err: m.lastError(e)}
	}
	if !time.Now().Before(k.notAfter) {
		return nil, &NameError{Name: name, Reason: Expired, NotAfter: k.notAfter, Err: m.lastError(e)}
	}
	return k.cert, nil
}

// Has reports whether name, in any case, is one of the names of the configuration.
func (m *Manager) Has(name string) bool { return m.byName[lowerASCII(name)] != nil }

// Changed returns a channel that is closed when a certificate is replaced, or the first one for a name comes. Take the
// channel first, then look, then wait: so no change is missed.
func (m *Manager) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Following reports whether another process orders for the folder, so that this one only serves what it has written.
func (m *Manager) Following() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.following
}

// Status returns the state of each name, in the order of the configuration.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Status, 0, len(m.entries))
	for _, e := range m.entries {
		s := Status{Name: e.name, LastError: e.lastErr, Issued: e.issued, Failed: e.failed}
		if !e.working && !m.following {
			s.NextTry = e.nextTry
		}
		if k := e.cert.Load(); k != nil {
			s.NotBefore, s.NotAfter = k.cert.Leaf.NotBefore, k.notAfter
		}
		list = append(list, s)
	}
	return list
}

// Close ends what is under way with the CA, lets another process order, and waits until that is done. GetCertificate
// goes on with the certificates that are there. It returns nil and may be called more than once.
func (m *Manager) Close() error {
	m.cancel()
	<-m.done
	return nil
}

// lastError returns why the last order for e failed.
func (m *Manager) lastError(e *entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return e.lastErr
}

// use puts a certificate into use and says so to those who wait for Changed.
func (m *Manager) use(e *entry, k *kept) {
	e.cert.Store(k)
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}
