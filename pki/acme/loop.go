package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// maxAtWork is how many orders are under way at once: a few, so that a name that hangs does not hold up the others, and
	// not so many that a CA finds it rude.
	maxAtWork = 4
	// maxNap bounds waits, as timers stand still while a machine sleeps and the time of a certificate does not.
	maxNap = time.Minute
	// maxRetry is the longest delay after failures while a certificate is good for long; noneRetry when there is none that
	// is good.
	maxRetry  = 6 * time.Hour
	noneRetry = time.Hour
	// soonPart of a certificate's life is left when its coming end is logged.
	soonPart = 10
	// spreadPart of a certificate's life is the most by which it is renewed earlier at random.
	spreadPart = 50
)

// manageLoop becomes the one process that orders and orders what is due, until Close.
func (m *Manager) manageLoop(ctx context.Context) {
	defer close(m.done)
	defer m.http.CloseIdleConnections()
	unlock := m.follow(ctx)
	if unlock == nil {
		return
	}
	defer unlock()
	var work sync.WaitGroup
	defer work.Wait()
	for ctx.Err() == nil {
		next := m.startDue(ctx, &work)
		m.warnOfEnds()
		if !m.nap(ctx, min(time.Until(next), maxNap)) {
			return
		}
	}
}

// nap waits for d, for the end of an order, or for Close, of which it returns false.
func (m *Manager) nap(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-m.wake:
	case <-timer.C:
	}
	return true
}

// follow serves what another process writes until that one ends, and returns how to let the next one order; nil after
// Close.
func (m *Manager) follow(ctx context.Context) (unlock func()) {
	for last := ""; ; {
		unlock, held, err := tryLock(m.store.lockPath())
		m.mu.Lock()
		m.following = held
		m.mu.Unlock()
		switch {
		case err == nil:
			m.takeOver()
			return unlock
		case held:
			if last != "held" {
				m.log.Info("another gateway orders certificates for this folder, following it", "file", m.store.lockPath())
			}
			last = "held"
		case err.Error() != last:
			last = err.Error()
			m.log.Error("certificates cannot be ordered", "file", m.store.lockPath(), "err", err)
			m.fail(err)
		}
		for _, e := range m.entries {
			m.refresh(e)
		}
		m.warnOfEnds()
		if !m.nap(ctx, m.timing.followPoll) {
			return nil
		}
	}
}

// takeOver reads what the process before has left.
func (m *Manager) takeOver() {
	if err := m.store.sweep(); err != nil {
		m.log.Warn("files of a write that was not finished cannot be removed", "err", err)
	}
	if err := m.orders.load(); err != nil {
		m.log.Warn("the count of orders is lost and begins anew", "err", err)
	}
	for _, e := range m.entries {
		m.refresh(e)
		m.mu.Lock()
		e.lastErr = nil
		m.mu.Unlock()
	}
}

// fail notes for every name that nothing can be ordered.
func (m *Manager) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		e.lastErr = &IssueError{Name: e.name, Step: StepLock, Detail: err.Error(), Err: err,
			Mend: "let the gateway write to the folder, and see whether its file system is full"}
	}
}

// refresh reads the file of a name if it is another than the one in use, and sets when to renew. What cannot be used is
// logged, once, and ordered anew; what is in use stays.
func (m *Manager) refresh(e *entry) {
	old := e.cert.Load()
	if old != nil {
		info, err := os.Stat(m.store.certPath(e.name))
		if err != nil || old.info != nil && os.SameFile(info, old.info) && info.ModTime().Equal(old.info.ModTime()) && info.Size() == old.info.Size() {
			return
		}
	}
	file, err := m.store.readCert(e.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		if text := err.Error(); text != e.readErr {
			e.readErr = text
			m.log.Warn("kept certificate cannot be used", "host", e.name, "err", err)
		}
		return
	}
	e.readErr = ""
	k := m.keep(file.cert, file.info)
	if file.open {
		m.log.Warn("others could read the key of a kept certificate, it is renewed at once", "host", e.name, "file", m.store.certPath(e.name))
		k.renewAt = time.Time{}
	}
	m.mu.Lock()
	e.nextTry = k.renewAt
	m.mu.Unlock()
	if old == nil || !bytes.Equal(old.cert.Leaf.Raw, file.cert.Leaf.Raw) {
		m.use(e, k)
		return
	}
	e.cert.Store(k)
}

// keep returns cert with the time to renew it.
func (m *Manager) keep(cert *tls.Certificate, info fs.FileInfo) *kept {
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	before := m.cfg.RenewBefore
	if before == 0 {
		before = life / 3
	}
	before = min(before, life/2) + rand.N(max(life/spreadPart, 1))
	return &kept{cert: cert, info: info, notAfter: cert.Leaf.NotAfter, renewAt: cert.Leaf.NotAfter.Add(-before)}
}

// startDue starts the orders that are due, the longest due ones first, and returns when the next one will be.
func (m *Manager) startDue(ctx context.Context, work *sync.WaitGroup) (next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	next = now.Add(maxNap)
	var due []*entry
	atWork := 0
	for _, e := range m.entries {
		switch {
		case e.working:
			atWork++
		case now.Before(e.nextTry):
			if e.nextTry.Before(next) {
				next = e.nextTry
			}
		default:
			due = append(due, e)
		}
	}
	slices.SortStableFunc(due, func(a, b *entry) int { return a.nextTry.Compare(b.nextTry) })
	for _, e := range due[:min(len(due), maxAtWork-atWork)] {
		e.working = true
		// Ends with its order, at the latest when ctx does; manageLoop waits for it.
		work.Go(func() { m.attempt(ctx, e) })
	}
	return next
}

// attempt makes one order for a name and notes how it went.
func (m *Manager) attempt(ctx context.Context, e *entry) {
	started := time.Now()
	fresh, err := m.renew(ctx, e)
	closing := ctx.Err() != nil
	k := e.cert.Load()

	m.mu.Lock()
	e.working = false
	switch {
	case err == nil:
		e.failures, e.lastErr, e.nextTry = 0, nil, k.renewAt
	case !closing:
		e.lastErr, e.nextTry = err, time.Now().Add(m.delay(e, k, err))
	}
	if fresh {
		e.issued++
	}
	next := e.nextTry
	m.mu.Unlock()

	switch {
	case err == nil:
		m.log.Info("certificate issued", "host", e.name, "not_after", k.notAfter, "dur", time.Since(started))
	case closing:
	case k == nil || !time.Now().Before(k.notAfter):
		m.log.Error("there is no valid certificate and none was issued", "host", e.name, "err", err, "next", next)
	default:
		m.log.Warn("certificate was not renewed, the old one stays", "host", e.name, "not_after", k.notAfter, "err", err, "next", next)
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// delay counts a failure and returns how long to wait after it. The caller holds mu.
func (m *Manager) delay(e *entry, k *kept, err *IssueError) time.Duration {
	if err.Step == StepRate { // no order was made
		return err.RetryAfter
	}
	e.failures++
	e.failed++
	left := time.Duration(0)
	if k != nil {
		left = time.Until(k.notAfter)
	}
	wait := backoff(m.timing.firstRetry, e.failures, left)
	wait += rand.N(wait/5 + 1) // so that names that failed together do not come together again
	return max(wait, err.RetryAfter)
}

// backoff returns the delay after so many failures in a row, for a certificate that is good for left: first, doubled
// with each, up to maxRetry; but the nearer the end, the more often.
func backoff(first time.Duration, failures int, left time.Duration) time.Duration {
	limit := noneRetry
	if left > 0 {
		limit = min(maxRetry, max(left/4, first))
	}
	wait := first
	for range failures - 1 {
		if wait *= 2; wait >= limit {
			break
		}
	}
	return min(wait, max(limit, first))
}

// warnOfEnds logs, once for each certificate, that little of its life is left, and that it is over.
func (m *Manager) warnOfEnds() {
	for _, e := range m.entries {
		k := e.cert.Load()
		if k == nil {
			continue
		}
		left, life := time.Until(k.notAfter), k.notAfter.Sub(k.cert.Leaf.NotBefore)
		switch {
		case left <= 0 && e.warnedOver != k:
			e.warnedOver = k
			m.log.Error("certificate has expired, handshakes for its name fail", "host", e.name, "not_after", k.notAfter, "err", m.lastError(e))
		case left > 0 && left < life/soonPart && e.warnedSoon != k:
			e.warnedSoon = k
			m.log.Warn("certificate expires soon and no newer one is in place", "host", e.name, "not_after", k.notAfter)
		}
	}
}

// readRoots reads the CA certificates to verify the CA's server with.
func readRoots(path string) (*x509.CertPool, error) {
	data, _, err := readFile(path)
	if err != nil {
		return nil, &ConfigError{Field: "roots", File: path, Detail: "cannot be read", Err: err, Mend: "name a PEM file with CA certificates"}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, &ConfigError{Field: "roots", File: path, Detail: "has no certificate in PEM", Mend: "name a PEM file with CA certificates"}
	}
	return pool, nil
}

// errorList collects problems to report at once.
type errorList []error

func (l *errorList) add(err error) { *l = append(*l, err) }
func (l errorList) join() error    { return errors.Join(l...) }
