package pki

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/spiffe"
)

// Source holds the identity of a gateway and keeps it current. All methods may be called at any time from any
// goroutine.
type Source struct {
	// immutable after newSource
	log      *slog.Logger
	certFile string                          // for messages, "" if there is none
	paths    []string                        // the files to look at
	load     func() (*Material, error)       // reads all of it anew; nil in a fixed Source
	end      func()                          // ends what load depends on; nil: nothing
	renew    func(ctx context.Context) error // makes a new identity in place of one that is due; nil: others do
	follow   func(ctx context.Context)       // hears of changes elsewhere until ctx ends, and calls push; nil: there are none
	interval time.Duration                   // between looks at the files, 0 = never
	trust    *TrustConfig                    // whom to believe besides
	state    string                          // the folder for fetched bundles
	fetches  []*bundleFetch                  // bundles that are fetched
	pushed   chan struct{}                   // tells watchLoop that load has something new; of one place
	ctx      context.Context                 // ended by Close
	stop     context.CancelFunc
	loops    sync.WaitGroup

	current   atomic.Pointer[Material]
	closeOnce sync.Once

	reloadMu sync.Mutex // one reload at a time; taken before changedMu
	seen     stamps     // guarded by reloadMu: the files as they were before the last load
	unsure   bool       // guarded by reloadMu: the last load failed, or files were so fresh that a later change may not show
	lastErr  string     // guarded by reloadMu: the failure that was reported last, "" after a success

	changedMu sync.Mutex
	changed   chan struct{} // guarded by changedMu: closed at the next change

	renewals, renewalsFailed atomic.Int64

	// owned by watchLoop
	turnedAt   time.Time // until when turns of trust were told
	warnedSoon *Material // the material whose coming end was logged
	warnedOver *Material // the material whose end was logged
}

// Open takes the identity from where cfg says: files, a Workload API, a CA that signs on request, a key of one's own, or
// else a CA and an identity that are made and kept in cfg.State for a host of that name. See OpenFiles, OpenWorkloadAPI,
// OpenIstioCA, OpenSelfMade and OpenState.
func Open(ctx context.Context, cfg Config, host string, log *slog.Logger) (*Source, error) {
	switch {
	case cfg.hasFiles():
		return OpenFiles(cfg, log)
	case cfg.WorkloadAPI != "":
		return OpenWorkloadAPI(ctx, cfg, log)
	case !cfg.CA.IsZero():
		return OpenIstioCA(ctx, cfg, log)
	case cfg.SelfMade:
		return OpenSelfMade(cfg, log)
	}
	return openKept(cfg, host, log)
}

// OpenFiles reads the identity that cfg names and follows its files. Every problem is reported at once, joined,
// each a *ConfigError. When a file changes later, all three are read again, and the new material replaces the old
// one only if all of it is good together; otherwise the old one stays, the log says why, once, and each look tries
// again. cfg.Validate must have cert, key and roots set. Close ends it.
func OpenFiles(cfg Config, log *slog.Logger) (*Source, error) {
	if !cfg.hasFiles() {
		return nil, &ConfigError{Field: "cert", Reason: Missing, Detail: "is missing", Mend: "name the PEM files of cert, key and roots"}
	}
	s := newSource(log, &cfg, func() (*Material, error) { return loadSettled(&cfg) })
	return s.start()
}

// Fixed returns a Source whose material never changes. Its Close does nothing.
func Fixed(m *Material) *Source {
	s := &Source{changed: make(chan struct{})}
	s.current.Store(m)
	return s
}

// newSource makes a Source that is not started.
func newSource(log *slog.Logger, cfg *Config, load func() (*Material, error)) *Source {
	s := &Source{
		log: log, certFile: cfg.Cert, paths: cfg.Trust.paths(cfg.State), load: load, interval: cfg.pollInterval(),
		trust: &cfg.Trust, state: cfg.State, fetches: newFetches(&cfg.Trust, cfg.State, log),
		pushed: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	for _, file := range []string{cfg.Cert, cfg.Key, cfg.Roots} {
		if file != "" {
			s.paths = append(s.paths, file)
		}
	}
	return s
}

// start loads for the first time and begins to watch.
func (s *Source) start() (*Source, error) {
	if err := s.Reload(); err != nil {
		return nil, err
	}
	for _, f := range s.fetches {
		f.start()
	}
	// Close ends these and waits for them.
	s.loops.Go(s.watchLoop)
	if s.renew != nil {
		s.loops.Go(s.renewLoop)
	}
	if s.follow != nil {
		s.loops.Go(func() { s.follow(s.ctx) })
	}
	return s, nil
}

// push has watchLoop load what is new.
func (s *Source) push() {
	select {
	case s.pushed <- struct{}{}:
	default: // it has been told
	}
}

// Current returns the material to use now. It never returns nil and does not block.
func (s *Source) Current() *Material { return s.current.Load() }

// ID returns who this gateway is now. It is made to be given to SameNamespace.
func (s *Source) ID() spiffe.ID { return s.Current().ID }

// Changed returns a channel that is closed at the next change of Current, or when time alone has ended what it believed: an
// entry of a key, or a revocation list that is overdue and refuses then. Take the channel first, then look at
// Current, then wait: so no change is missed.
func (s *Source) Changed() <-chan struct{} {
	s.changedMu.Lock()
	defer s.changedMu.Unlock()
	return s.changed
}

// Reload reads the files now, for SIGHUP. It returns why the material that is there cannot be used; then the old one
// stays current and the caller logs the error. It blocks for the reading of files only.
func (s *Source) Reload() error {
	if s.load == nil {
		return nil
	}
	s.reloadMu.Lock()
	defer s.reloadMu.Unlock()
	err := s.reload()
	if err != nil {
		s.lastErr = err.Error()
	}
	return err
}

// Close stops looking at the files and waits until that has ended. The TLS configurations go on working with the
// material that is current. It returns nil and may be called more than once.
func (s *Source) Close() error {
	if s.load == nil {
		return nil
	}
	s.closeOnce.Do(func() {
		s.stop()
		if s.end != nil {
			s.end()
		}
		for _, f := range s.fetches {
			f.close()
		}
	})
	s.loops.Wait()
	return nil
}

// LogValue returns the current identity and its end.
func (s *Source) LogValue() slog.Value { return s.Current().LogValue() }

// reload reads the files and puts the material in its place if it is another. The caller holds reloadMu.
func (s *Source) reload() error {
	s.seen = statAll(s.paths)
	s.unsure = true
	m, err := s.loadAll()
	if err != nil {
		return err
	}
	s.unsure = s.seen.fresh(time.Now())
	s.lastErr = ""
	old := s.Current()
	if old != nil && old.digest == m.digest {
		return nil
	}
	m.logWarnings(s.log)
	s.current.Store(m)
	if old == nil {
		return nil
	}
	switch {
	case old.own == m.own:
		s.log.Info("trust changed", "id", m.ID.String())
	case old.ID == m.ID:
		s.log.Info("identity renewed", "id", m.ID.String(), "not_after", m.NotAfter)
	default:
		s.log.Warn("identity changed to another name", "id", m.ID.String(), "old", old.ID.String(), "not_after", m.NotAfter)
	}
	s.tell()
	return nil
}

// tell closes what Changed has returned.
func (s *Source) tell() {
	s.changedMu.Lock()
	defer s.changedMu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// tellTurned tells where time alone has changed whom we believe.
func (s *Source) tellTurned(now time.Time) {
	then := s.turnedAt
	s.turnedAt = now
	if s.Current().trust.turned(then, now) {
		s.tell()
	}
}

// loadAll loads the identity and whom it believes.
func (s *Source) loadAll() (*Material, error) {
	m, err := s.load()
	if s.trust == nil || s.trust.IsZero() {
		return m, err
	}
	t, trustErr := loadTrust(s.trust, s.state, time.Now())
	if err = errors.Join(err, trustErr); err != nil {
		return nil, err
	}
	if old := s.Current(); old != nil && old.trust != nil && old.trust.hasKept && !t.hasKept {
		return nil, &ConfigError{Field: "trust.crls", File: s.trust.kept, Reason: Missing, Detail: "the revocation list of the CA was there and is gone",
			Mend: "put it back, or restart if nothing is to be revoked"}
	}
	return m.withTrust(t), nil
}

// watchLoop looks at the files until Close.
func (s *Source) watchLoop() {
	var ticks <-chan time.Time // nil: files are looked at on SIGHUP only
	if s.interval > 0 {
		tick := time.NewTicker(s.interval)
		defer tick.Stop()
		ticks = tick.C
	}
	s.turnedAt = time.Now()
	clock := time.NewTicker(defaultPoll)
	defer clock.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.pushed:
			s.reloadPushed()
			continue
		case now := <-clock.C:
			s.tellTurned(now)
			continue
		case <-ticks:
		}
		s.reloadIfChanged()
		s.warnOfEnd()
	}
}

// reloadIfChanged reloads when the files look different from last time, or when the last look was not to be relied
// on.
func (s *Source) reloadIfChanged() {
	s.reloadMu.Lock()
	defer s.reloadMu.Unlock()
	if !s.unsure && s.seen.same(statAll(s.paths)) {
		return
	}
	s.reloadAndLog()
}

// reloadPushed reloads what was pushed.
func (s *Source) reloadPushed() {
	s.reloadMu.Lock()
	defer s.reloadMu.Unlock()
	s.reloadAndLog()
}

// reloadAndLog reloads, and logs a failure when it is another than the last one. The caller holds reloadMu.
func (s *Source) reloadAndLog() {
	last := s.lastErr
	if err := s.reload(); err != nil && err.Error() != last {
		s.lastErr = err.Error()
		s.log.Warn("changed identity cannot be used, the old one stays", "id", s.ID().String(), "err", err)
	}
}

// Renewals returns how often the identity was renewed, and how often that has failed, where it is for this process to do.
func (s *Source) Renewals() (renewed, failed int64) {
	return s.renewals.Load(), s.renewalsFailed.Load()
}

// warnOfEnd logs, once for each material, that less than a tenth of its life is left, and that it is over.
func (s *Source) warnOfEnd() {
	m := s.Current()
	left := time.Until(m.NotAfter)
	switch {
	case left <= 0 && s.warnedOver != m:
		s.warnedOver = m
		s.log.Error("identity has expired, no handshake will succeed", "id", m.ID.String(), "not_after", m.NotAfter)
	case left > 0 && left < m.NotAfter.Sub(m.NotBefore)/10 && s.warnedSoon != m:
		s.warnedSoon = m
		s.log.Warn("identity expires soon and no newer one is in place", "id", m.ID.String(), "not_after", m.NotAfter)
	}
}
