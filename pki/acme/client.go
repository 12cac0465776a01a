package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	xacme "golang.org/x/crypto/acme"
)

const (
	// maxBodyBytes is what a body of the CA may have. A chain of five certificates has some 10 KiB; RSA of 16384 bits and
	// a hundred names in each stay below.
	maxBodyBytes = 128 << 10
	// maxHeaderBytes is what the head of an answer may have.
	maxHeaderBytes = 32 << 10
	// requestTimeout is for one request with its whole answer.
	requestTimeout = 30 * time.Second
	// idleTimeout lets a connection serve one order, which waits for a second here and there.
	idleTimeout = 10 * time.Second
	// minPoll and maxPoll bound what a CA may say about when to look at an order again. Without the lower bound, "-1"
	// makes the client ask without a pause.
	minPoll = time.Second
	maxPoll = 15 * time.Second
	// maxNonceTries bounds repeats for a nonce that the CA refuses. RFC 8555, section 6.5: "the client SHOULD retry the
	// request". A CA that refuses half of them lets one of 10^9 such requests fail.
	maxNonceTries = 30
	// maxFaultTries bounds repeats of a request after a server error, before the whole order is put off.
	maxFaultTries = 3
)

// userAgent tells the CA who asks (RFC 8555, section 6.1).
const userAgent = "culvert"

// newHTTPClient returns a client for the CA at directory that keeps within the bounds above and the CA within its
// host.
func newHTTPClient(directory string, roots *x509.CertPool, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (*http.Client, error) {
	u, err := url.Parse(directory)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout: requestTimeout,
		Transport: &guard{host: hostPort(u), base: &http.Transport{
			DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxIdleConns: maxAtWork, MaxIdleConnsPerHost: maxAtWork, MaxConnsPerHost: 2 * maxAtWork, IdleConnTimeout: idleTimeout,
			TLSHandshakeTimeout: requestTimeout, ResponseHeaderTimeout: requestTimeout,
			MaxResponseHeaderBytes: maxHeaderBytes, DisableCompression: true,
		}},
		CheckRedirect: func(req *http.Request, _ []*http.Request) error {
			return fmt.Errorf("the CA redirects to %.100q; set directory to where it really is", req.URL.Redacted())
		},
	}, nil
}

// newClient returns an ACME client for one order. Each order has its own, so that none waits for another's nonces,
// and all of them read the directory anew.
func (m *Manager) newClient() *xacme.Client {
	return &xacme.Client{
		DirectoryURL: m.cfg.directory(), HTTPClient: m.http, UserAgent: userAgent, RetryBackoff: retryBackoff,
	}
}

// retryBackoff returns how long the ACME client waits before it repeats a request for the nth time, 0 if it gives up.
func retryBackoff(n int, _ *http.Request, res *http.Response) time.Duration {
	switch {
	case res.StatusCode == http.StatusBadRequest: // only a refused nonce is repeated with this status
		if n > maxNonceTries {
			return 0
		}
		return time.Duration(n)*10*time.Millisecond + rand.N(10*time.Millisecond)
	case res.StatusCode == http.StatusTooManyRequests: // the delay between orders is the one to grow
		return 0
	case n > maxFaultTries:
		return 0
	}
	return time.Second<<(n-1) + rand.N(time.Second)
}

// guard is the way to the CA. It refuses requests to other hosts than the CA's (its answers are full of URLs, and
// this gateway can reach what the CA cannot), cuts off long bodies, and corrects when to ask again.
type guard struct {
	base *http.Transport
	host string // with port
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" || hostPort(req.URL) != g.host {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, fmt.Errorf("the CA sends us to %.100q, which is not on its own https://%s", req.URL.Redacted(), g.host)
	}
	res, err := g.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	res.Body = &boundedBody{ReadCloser: res.Body, left: maxBodyBytes + 1} // the one tells longer from just as long
	if value := res.Header.Get("Retry-After"); value != "" && res.StatusCode < http.StatusMultipleChoices {
		wait := min(max(minPoll, parseRetryAfter(value, time.Now())), maxPoll)
		res.Header.Set("Retry-After", strconv.Itoa(int(wait/time.Second)))
	}
	return res, nil
}

// CloseIdleConnections is called by http.Client.CloseIdleConnections.
func (g *guard) CloseIdleConnections() { g.base.CloseIdleConnections() }

// boundedBody is a body that fails instead of going on for too long.
type boundedBody struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the CA's answer is longer than %d bytes", maxBodyBytes)
	}
	if len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	return n, err
}

// hostPort returns the host of u in lower case with its port.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(lowerASCII(u.Hostname()), port)
}

// parseRetryAfter reads a Retry-After field (RFC 9110, section 10.2.3), 0 if it is not one.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(min(max(seconds, 0), int(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return at.Sub(now)
	}
	return 0
}
