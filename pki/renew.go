package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

// fetchTimeout is how long one of the CA's files may take.
const fetchTimeout = 30 * time.Second

// Renew has the CA that a folder's ca.address names sign the folder's identity again: the same key and the same name,
// with the certificate that is there as the credential. It takes over the CA's roots and CRL as well, and returns until
// when the new certificate is good. Members call it at half the life of a certificate, RenewAt. A certificate that has
// expired is good for this, and nothing else, as long as the CA's Grace says; after that the host has to join again. Nothing is written unless all of the answer is right. It
// blocks until ctx ends at most, and locks the folder for the writing only.
func Renew(ctx context.Context, dir string) (Member, error) { return renewIn(ctx, dir, false) }

// renewIn is Renew, with a new key if that is wanted.
func renewIn(ctx context.Context, dir string, newKey bool) (Member, error) {
	m, e, err := openEnrolment(dir)
	if err != nil {
		return Member{}, err
	}
	if newKey {
		if e.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return Member{}, fmt.Errorf("make a key: %w", err)
		}
	}
	got, err := e.run(ctx, m.ID)
	if err != nil {
		return Member{}, fmt.Errorf("renew %s by the CA at %s: %w", m.ID, e.addr, err)
	}
	return got, nil
}

// Refresh takes over the roots and the CRL of the CA that a folder's ca.address names. The roots must be such that the
// folder's identity leads to one of them; otherwise nothing is written. Files that have not changed are left alone.
func Refresh(ctx context.Context, dir string) error {
	m, e, err := openEnrolment(dir)
	if err != nil {
		return err
	}
	files, err := e.fetch(ctx)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(files.roots)
	if _, err := m.chain[0].Verify(verifyOptions(m.chain, pool, x509.ExtKeyUsageAny, time.Now())); err != nil {
		return fmt.Errorf("the roots of the CA at %s are not those of %s: %w", e.addr, m.ID, err)
	}
	unlock, err := lockStateDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	return files.write(dir)
}

// RenewAt returns when an identity is to be renewed: at half its life.
func RenewAt(m *Material) time.Time { return halfLife(m.NotBefore, m.NotAfter) }

// Joined reports whether the identity in a state folder came from the CA of another host, so that Renew renews it.
func Joined(dir string) bool {
	return exists(filepath.Join(dir, caAddressFile)) && !exists(filepath.Join(dir, caKeyFile))
}

// openEnrolment reads what a folder renews with.
func openEnrolment(dir string) (*Material, *enrolment, error) {
	addr, err := os.ReadFile(filepath.Join(dir, caAddressFile))
	if err != nil {
		return nil, nil, &ConfigError{Field: caAddressFile, File: dir, Reason: Unreadable, Detail: "no CA is known", Err: err,
			Mend: "join one: gateway ca token, on its host, prints the command"}
	}
	e := &enrolment{dir: dir, addr: strings.TrimSpace(string(addr))}
	if err := checkCAAddress(e.addr); err != nil {
		return nil, nil, err
	}
	m, err := newState(dir, "", nil).loadEver()
	if err != nil {
		return nil, nil, err
	}
	ca, err := spiffe.New(m.ID.TrustDomain(), authorityNamespace, authorityAccount)
	if err != nil {
		return nil, nil, err
	}
	e.tls = Fixed(m).ClientTLS(Exactly(ca))
	e.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.Certificate, nil } // also past its time
	e.key, _ = m.Certificate.PrivateKey.(crypto.Signer)                                                                     // parseKey returns nothing else
	return m, e, nil
}

// caFiles is what a CA serves to everybody.
type caFiles struct{ roots, crl []byte }

// client returns a client of the CA that gives each request no longer than timeout and follows no redirects. With once each
// request has a connection of its own, which ends with it; otherwise the caller closes its idle connections.
func (e *enrolment) client(timeout time.Duration, once bool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: e.tls.Clone(), ForceAttemptHTTP2: true, TLSHandshakeTimeout: caHandshakeTimeout,
			MaxResponseHeaderBytes: caMaxHeaderBytes, DisableKeepAlives: once},
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// fetch gets the roots and the CRL, over one connection.
func (e *enrolment) fetch(ctx context.Context) (*caFiles, error) {
	client := e.client(fetchTimeout, false)
	defer client.CloseIdleConnections()
	bundle, err := e.get(ctx, client, bundlePath, maxBundleBytes)
	if err != nil {
		return nil, err
	}
	roots, err := decodeRoots(bundle)
	if err != nil {
		return nil, err
	}
	files := new(caFiles)
	for _, root := range roots {
		files.roots = append(files.roots, encodeCert(root.Raw)...)
	}
	if files.crl, err = e.get(ctx, client, crlPath, maxFileBytes); err != nil {
		return nil, err
	}
	return files, checkCRLs(files.crl)
}

// get fetches one file.
func (e *enrolment) get(ctx context.Context, client *http.Client, path string, limit int64) ([]byte, error) {
	u := url.URL{Scheme: "https", Host: e.addr, Path: path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch %s: the CA answers %s", path, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("it is longer than %d bytes", limit)
	}
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", path, err)
	}
	return data, nil
}

// checkCRLs refuses what is not a list of CRLs. Whether a CRL's signer may sign it is looked at where it is used.
func checkCRLs(text []byte) error {
	for block, rest := pem.Decode(text); ; block, rest = pem.Decode(rest) {
		if block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return errors.New("the CRL of the CA is not PEM")
			}
			return nil
		}
		if block.Type != "X509 CRL" {
			return fmt.Errorf("the CRL of the CA holds a %s", printable(block.Type))
		}
		if _, err := x509.ParseRevocationList(block.Bytes); err != nil {
			return fmt.Errorf("the CRL of the CA is damaged: %w", err)
		}
	}
}

// write writes the files that have changed. The caller has locked the folder.
func (f *caFiles) write(dir string) error {
	if err := writeIfOther(filepath.Join(dir, caCertFile), f.roots); err != nil {
		return err
	}
	return writeIfOther(filepath.Join(dir, crlFile), f.crl)
}

// writeIfOther writes a file unless that is what it holds.
func writeIfOther(path string, data []byte) error {
	if have, err := readSmall(path); err == nil && have != nil && bytes.Equal(have, data) {
		return nil
	}
	return writeFile(path, data)
}

// idURL returns an identity as a URL for a certificate.
func idURL(id spiffe.ID) (*url.URL, error) { return url.Parse(id.String()) }

// waitForCA asks the CA of the identity in dir for the state of its roots and its CRL, and where that is still tag, waits for
// a change of it for a minute. It returns the state.
func waitForCA(ctx context.Context, dir, tag string) (string, error) {
	_, e, err := openEnrolment(dir)
	if err != nil {
		return tag, err
	}
	client := e.client(caMaxWait+fetchTimeout, true)
	defer client.CloseIdleConnections()
	u := url.URL{Scheme: "https", Host: e.addr, Path: crlPath}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return tag, err
	}
	if tag != "" {
		req.Header.Set("If-None-Match", tag)
		req.Header.Set("Prefer", fmt.Sprintf("wait=%d", caMaxWait/time.Second))
	}
	resp, err := client.Do(req)
	if err != nil {
		return tag, fmt.Errorf("ask the CA for changes: %w", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotModified:
		return tag, nil
	case http.StatusOK:
		return resp.Header.Get("ETag"), nil
	}
	return tag, fmt.Errorf("ask the CA for changes: it answers %s", resp.Status)
}
