package jwt

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// fetchTimeout is for all requests of one refresh: an issuer that takes longer is down.
	fetchTimeout = 5 * time.Second
	// maxRedirects is how often one request is sent on, on the same host.
	maxRedirects = 3
	// maxHeaderBytes bounds the header of an answer.
	maxHeaderBytes = 32 << 10
	// maxTokenFileBytes is more than any token that an API server takes.
	maxTokenFileBytes = 16 << 10
	// discoveryPath is that of OpenID Connect Discovery 1.0, section 4.
	discoveryPath = "/.well-known/openid-configuration"

	// defaultLife, minLife and maxLife are how long a set is current: a minute keeps us from asking all the time, an
	// hour bounds how long a withdrawn key is believed.
	defaultLife = 5 * time.Minute
	minLife     = time.Minute
	maxLife     = time.Hour
)

// fetcher gets the key set of one issuer over HTTP. Its addresses come from the configuration, and with discovery from
// the issuer's own document; nothing of a token is part of a request.
type fetcher struct {
	// immutable
	issuer    string   // for discovery
	address   *url.URL // the key set; nil with discovery
	hosts     []string // with their ports; where discovery may lead, redirects excluded
	loopback  bool     // loopbackHttp
	tokenFile string
	caFile    string
	roots     *x509.CertPool
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
}

// newFetcher makes the fetcher of an issuer that was validated.
func newFetcher(c *IssuerConfig, env *Env) *fetcher {
	f := &fetcher{issuer: c.Issuer, loopback: c.LoopbackHTTP, tokenFile: c.TokenFile, caFile: c.CAFile, roots: env.Roots, dial: env.DialContext}
	if c.JWKSURI != "" {
		f.address, _ = parseAddress(c.JWKSURI, c.LoopbackHTTP)
		return f
	}
	home, _ := parseAddress(c.Issuer, c.LoopbackHTTP)
	f.hosts = []string{hostOf(home)}
	for i, host := range c.Hosts {
		if i == 0 {
			f.hosts = nil
		}
		u := url.URL{Scheme: "https", Host: host}
		f.hosts = append(f.hosts, hostOf(&u))
	}
	return f
}

// load gets the key set, and how long it is current.
func (f *fetcher) load(ctx context.Context) (data []byte, life time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	client, err := f.client()
	if err != nil {
		return nil, 0, err
	}
	address := f.address
	if address == nil {
		if address, err = f.discover(ctx, client); err != nil {
			return nil, 0, err
		}
	}
	data, header, err := f.get(ctx, client, address)
	if err != nil {
		return nil, 0, err
	}
	return data, lifeOf(header), nil
}

// client makes the client of one refresh. They are minutes apart, so no connection is kept, and what CAFile says
// counts at once. There is no proxy: the environment does not say whom we trust.
func (f *fetcher) client() (*http.Client, error) {
	roots := f.roots
	if f.caFile != "" {
		data, err := readFile(f.caFile, maxFileBytes)
		if err != nil {
			return nil, err
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s: there is no certificate in it", f.caFile)
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:     f.dial,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			// With it, a small answer could unfold to a big one.
			DisableCompression:     true,
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: maxHeaderBytes,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != via[0].URL.Scheme || hostOf(r.URL) != hostOf(via[0].URL) {
				return fmt.Errorf("is sent on to %s, another host", quote(r.URL.Host))
			}
			if len(via) > maxRedirects {
				return errors.New("is sent on too often")
			}
			return nil
		},
	}, nil
}

// discover reads where the key set is (OpenID Connect Discovery 1.0, sections 4.1 to 4.3).
func (f *fetcher) discover(ctx context.Context, client *http.Client) (*url.URL, error) {
	at, err := parseAddress(strings.TrimSuffix(f.issuer, "/")+discoveryPath, f.loopback)
	if err != nil {
		return nil, err
	}
	data, _, err := f.get(ctx, client, at)
	if err != nil {
		return nil, err
	}
	doc, err := decodeObject(data, maxSetValues)
	if err != nil {
		return nil, fmt.Errorf("the document at %s %w", at, err)
	}
	// Section 4.3: "The issuer value returned MUST be identical to the Issuer URL that was used as the prefix".
	if doc["issuer"] != any(f.issuer) {
		return nil, fmt.Errorf("the document at %s is of another issuer than %s", at, quote(f.issuer))
	}
	text, _ := doc["jwks_uri"].(string)
	address, err := parseAddress(text, f.loopback)
	if err != nil {
		return nil, fmt.Errorf("jwks_uri at %s: %w", at, err)
	}
	if !slices.Contains(f.hosts, hostOf(address)) {
		return nil, fmt.Errorf("jwks_uri at %s is on the host %s; name it in hosts if that is right", at, quote(address.Host))
	}
	return address, nil
}

// get does one request.
func (f *fetcher) get(ctx context.Context, client *http.Client, address *url.URL) ([]byte, http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Accept", "application/jwk-set+json, application/json")
	if f.tokenFile != "" {
		token, err := readFile(f.tokenFile, maxTokenFileBytes)
		if err != nil {
			return nil, nil, err
		}
		token = bytes.TrimSpace(token)
		if len(token) == 0 || bytes.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return nil, nil, fmt.Errorf("%s: is no token for a header", f.tokenFile)
		}
		r.Header.Set("Authorization", "Bearer "+string(token))
	}
	res, err := client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("get %s: status %d", address, res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxSetBytes+1))
	if err == nil {
		// When ctx ends, TLS says goodbye before the socket is closed, and the answer can seem to be whole.
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("get %s: %w", address, err)
	}
	if len(data) > maxSetBytes {
		return nil, nil, fmt.Errorf("get %s: the answer is bigger than %d bytes", address, maxSetBytes)
	}
	return data, res.Header, nil
}

// lifeOf reads how long an answer is current (RFC 9111, section 5.2.2.1), within our bounds.
func lifeOf(header http.Header) time.Duration {
	for _, line := range header.Values("Cache-Control") {
		for part := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch strings.ToLower(name) {
			case "no-store", "no-cache":
				return minLife
			case "max-age":
				seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
				if err != nil {
					return defaultLife
				}
				return min(max(time.Duration(seconds)*time.Second, minLife), maxLife)
			}
		}
	}
	return defaultLife
}
