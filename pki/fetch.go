package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// A bundle is fetched again as often as its spiffe_refresh_hint says, within these bounds, by default each five minutes
	// (SPIFFE Trust Domain and Bundle, section 4.1.2).
	refreshDefault = 5 * time.Minute
	refreshLeast   = 30 * time.Second
	refreshMost    = 24 * time.Hour
	// After a failure the next try waits for retryFirst, then twice as long, up to refreshDefault.
	retryFirst = 2 * time.Second
	// bundleTimeout is for one fetch, with everything.
	bundleTimeout = 10 * time.Second

	bundlesDir = "bundles"
)

// file is where the bundle is: the file that is named, or what was fetched.
func (d *DomainConfig) file(dir string) string {
	if isURL(d.Bundle) {
		return filepath.Join(dir, bundlesDir, d.Name+".json")
	}
	return d.Bundle
}

// bundleFetch fetches the bundle of a trust domain again and again, and keeps it in a file, which the Source follows.
type bundleFetch struct {
	domain DomainConfig
	file   string
	log    *slog.Logger

	ctx  context.Context // ended by close
	end  context.CancelFunc
	done chan struct{} // closed when loop has ended; nil: not started
}

func newFetches(c *TrustConfig, dir string, log *slog.Logger) (list []*bundleFetch) {
	for _, d := range c.Domains {
		if isURL(d.Bundle) {
			f := &bundleFetch{domain: d, file: d.file(dir), log: log}
			f.ctx, f.end = context.WithCancel(context.Background())
			list = append(list, f)
		}
	}
	return list
}

func (f *bundleFetch) start() {
	f.done = make(chan struct{})
	go f.loop() // ends with close, which waits for it
}

func (f *bundleFetch) close() {
	f.end()
	if f.done != nil {
		<-f.done
	}
}

func (f *bundleFetch) loop() {
	defer close(f.done)
	retry, last := retryFirst, ""
	for {
		wait, err := f.fetch()
		if err != nil {
			if text := err.Error(); text != last && f.ctx.Err() == nil {
				f.log.Warn("bundle of a trust domain cannot be fetched, the kept one stays", "domain", f.domain.Name, "url", f.domain.Bundle, "err", err)
				last = text
			}
			wait, retry = retry, min(2*retry, refreshDefault)
		} else {
			retry, last = retryFirst, ""
		}
		t := time.NewTimer(wait + rand.N(wait/10+1)) // so that not all gateways ask at once
		select {
		case <-f.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// fetch gets the bundle, keeps it if it is a newer one, and returns when to ask again.
func (f *bundleFetch) fetch() (time.Duration, error) {
	domain, err := spiffeid.TrustDomainFromString(f.domain.Name)
	if err != nil {
		return 0, err
	}
	text, err := f.get()
	if err != nil {
		return 0, err
	}
	bundle, err := spiffebundle.Parse(domain, text)
	if err != nil {
		return 0, err
	}
	if len(bundle.X509Authorities()) == 0 {
		return 0, errors.New("the bundle names no CA")
	}
	wait := refreshDefault
	if hint, ok := bundle.RefreshHint(); ok {
		wait = min(max(hint, refreshLeast), refreshMost)
	}
	if kept, err := spiffebundle.Load(domain, f.file); err == nil {
		was, _ := kept.SequenceNumber()
		is, _ := bundle.SequenceNumber()
		if is < was {
			return 0, fmt.Errorf("the bundle is older (spiffe_sequence %d) than the kept one (%d); remove %s if that is right", is, was, f.file)
		}
		if kept.Equal(bundle) {
			return wait, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(f.file), 0o700); err != nil {
		return 0, err
	}
	return wait, writeFile(f.file, text)
}

// get does the request. Redirects are not followed: the URL is configured (Federation, section 5.2.1).
func (f *bundleFetch) get() ([]byte, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.domain.Roots != "" {
		text, err := os.ReadFile(f.domain.Roots)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", f.domain.Roots)
		}
	}
	transport := &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: bundleTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(f.ctx, http.MethodGet, f.domain.Bundle, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answered %s", resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxFileBytes+1))
	if err == nil && len(text) > maxFileBytes {
		err = fmt.Errorf("the bundle is bigger than %d bytes", maxFileBytes)
	}
	return text, err
}
