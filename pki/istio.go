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
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
)

const (
	// istioDir is the folder below the state folder for an identity of an Istio CA.
	istioDir = "istio-ca"
	// istioFirst is how long a start waits for the first certificate: a CA that starts at the same time may be late.
	istioFirst = 30 * time.Second
	// maxTokenBytes bounds a token file.
	maxTokenBytes = 16 << 10
)

// CAConfig is a CA that signs the identity on request, as istiod and `gateway ca serve` do (Istio's CreateCertificate).
type CAConfig struct {
	// Address of the CA, `host:port`, such as `istiod.istio-system.svc:15012`.
	Address string `yaml:"address"`
	// Roots is a PEM file with the CAs of the server certificate of the CA, such as `/var/run/secrets/istio/root-cert.pem`.
	Roots string `yaml:"roots"`
	// ServerName is the name that is verified in that certificate. Default: the host of Address.
	ServerName string `yaml:"serverName"`
	// TokenFile is a file with the token that says who this gateway is, such as that of a Kubernetes service account. It is
	// read again for each request.
	TokenFile string `yaml:"tokenFile"`
	// ID is the SPIFFE ID to ask for. Default: the CA decides by the token.
	ID string `yaml:"id"`
	// TTL is how long certificates are to be valid. Default: as the CA thinks right.
	TTL time.Duration `yaml:"ttl"`
}

// IsZero reports whether no CA is named.
func (c *CAConfig) IsZero() bool { return *c == CAConfig{} }

// validate returns all that is wrong, as far as it can be seen without reading a file.
func (c *CAConfig) validate() (errs []error) {
	if c.IsZero() {
		return nil
	}
	fault := func(field, detail, mend string) {
		errs = append(errs, &ConfigError{Field: "ca." + field, Reason: BadValue, Detail: detail, Mend: mend})
	}
	if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" {
		fault("address", fmt.Sprintf("%q is no address", c.Address), "write host:port, such as istiod.istio-system.svc:15012")
	}
	if c.Roots == "" {
		fault("roots", "is missing", "name the PEM file with the CAs of the CA's own server certificate")
	}
	if c.TokenFile == "" {
		fault("tokenFile", "is missing", "name the file with the token that says who this gateway is")
	}
	if c.ID != "" {
		if _, err := spiffe.Parse(c.ID); err != nil {
			fault("id", err.Error(), "write it like spiffe://cluster.local/ns/default/sa/gw, or leave it out")
		}
	}
	if c.TTL < 0 || c.TTL > 0 && c.TTL < minIssueTTL {
		fault("ttl", fmt.Sprintf("%v is too short", c.TTL), fmt.Sprintf("use %v or more", minIssueTTL))
	}
	return errs
}

// istioCA gets an identity from an Istio CA and keeps it in a folder.
type istioCA struct {
	cfg   CAConfig
	files Config
	id    spiffe.ID // to ask for; zero: what the CA gives
}

// OpenIstioCA takes the identity from the CA at cfg.CA, with a key that is made on first start and kept, with the
// certificate, in a folder of cfg.State. It is renewed from half of its life on; while the CA is away what is there stays.
// cfg.Roots are the CAs of peers; "" are those that the CA sends with the certificate. It blocks for the first certificate,
// half a minute at most, or until ctx ends. Close ends the Source.
func OpenIstioCA(ctx context.Context, cfg Config, log *slog.Logger) (*Source, error) {
	dir := filepath.Join(cfg.State, istioDir)
	unlock, err := openStateDir(dir)
	if err != nil {
		return nil, err
	}
	unlock()
	c := &istioCA{cfg: cfg.CA, files: Config{
		Cert: filepath.Join(dir, identityCertFile), Key: filepath.Join(dir, identityKeyFile), Roots: filepath.Join(dir, caCertFile),
		Poll: cfg.Poll, Trust: cfg.Trust, State: cfg.State, NewKeys: cfg.NewKeys,
	}}
	if cfg.CA.ID != "" {
		if c.id, err = spiffe.Parse(cfg.CA.ID); err != nil {
			return nil, err
		}
	}
	if m, err := loadSettled(&c.files); err != nil || !leadsToRoots(m) || !c.id.IsZero() && m.ID != c.id {
		if err := c.first(ctx, log); err != nil {
			return nil, &ConfigError{Field: "ca", File: cfg.CA.Address, Reason: Unreadable, Err: err, Detail: "gives no identity",
				Mend: "see whether the CA runs, whether its roots are those of ca.roots, and whether it takes the token"}
		}
	}
	s := newSource(log, &c.files, func() (*Material, error) { return loadSettled(&c.files) })
	s.renew = c.renew
	return s.start()
}

// first tries until there is a certificate, or its time is over.
func (c *istioCA) first(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, istioFirst)
	defer cancel()
	for {
		err := c.renew(ctx)
		told, answered := errors.AsType[*istioca.Error](err)
		_, refused := errors.AsType[*PeerError](err)
		if err == nil || !answered || told.Code != istioca.Unavailable || refused || ctx.Err() != nil {
			return err // a CA that is there and says no, or is another one, will not be otherwise in a moment
		}
		log.Info("waiting for the CA", "host", c.cfg.Address, "err", err)
		t := time.NewTimer(renewFirst)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
}

// renew gets a certificate for the key in the folder, which it makes if there is none, and puts it in place.
func (c *istioCA) renew(ctx context.Context) error {
	key, keyPEM, err := c.key()
	if err != nil {
		return err
	}
	conf, err := c.tls()
	if err != nil {
		return err
	}
	client, err := istioca.NewClient(istioca.ClientConfig{Address: c.cfg.Address, TLS: conf, Token: c.token})
	if err != nil {
		return err
	}
	defer client.Close()
	csr, err := makeCSR(key, c.id)
	if err != nil {
		return err
	}
	chain, err := client.CreateCertificate(ctx, csr, c.cfg.TTL)
	if err != nil {
		return fmt.Errorf("ask the CA at %s: %w", c.cfg.Address, err)
	}
	if len(chain) < 2 || len(chain) > maxChain {
		return fmt.Errorf("the CA at %s sent a chain of %d certificates, root included", c.cfg.Address, len(chain))
	}
	certPEM, rootsPEM := []byte(strings.Join(chain[:len(chain)-1], "\n")), []byte(chain[len(chain)-1])
	m, err := Parse(certPEM, keyPEM, rootsPEM)
	switch {
	case err != nil:
		return fmt.Errorf("what the CA at %s sent: %w", c.cfg.Address, err)
	case !leadsToRoots(m):
		return fmt.Errorf("what the CA at %s sent does not lead to the root that it sent", c.cfg.Address)
	case !c.id.IsZero() && m.ID != c.id:
		return fmt.Errorf("the CA at %s sent a certificate for %s, not for %s", c.cfg.Address, m.ID, c.id)
	}
	return c.write(certPEM, keyPEM, rootsPEM)
}

// write puts what was got in place, the certificate last. Roots that were there stay beside new ones while they are valid,
// so that a change of root drops nobody.
func (c *istioCA) write(certPEM, keyPEM, rootsPEM []byte) error {
	unlock, err := lockStateDir(filepath.Dir(c.files.Cert))
	if err != nil {
		return err
	}
	defer unlock()
	roots := &input{field: "roots", file: c.files.Roots}
	if _, err := roots.read(); err == nil {
		if old, err := parseCertificates(roots, maxRoots); err == nil {
			rootsPEM = mergeRoots(rootsPEM, old, time.Now())
		}
	}
	return errors.Join(writeIfOther(c.files.Roots, rootsPEM), writeIfOther(c.files.Key, keyPEM), writeFile(c.files.Cert, certPEM))
}

// mergeRoots puts the valid ones of old behind the first of text, three in all.
func mergeRoots(text []byte, old []*x509.Certificate, now time.Time) []byte {
	const most = 3
	first, err := parseCertificates(&input{data: text}, maxRoots)
	if err != nil {
		return text
	}
	merged, n := encodeCert(first[0].Raw), 1
	for _, c := range old {
		if _, problem := timeProblem(c, now); problem == "" && !bytes.Equal(c.Raw, first[0].Raw) && n < most {
			merged, n = append(merged, encodeCert(c.Raw)...), n+1
		}
	}
	return merged
}

// key returns the key in the folder, or a new one, which is written with its certificate.
func (c *istioCA) key() (crypto.Signer, []byte, error) {
	in := input{field: "key", file: c.files.Key, secret: true}
	if _, err := in.read(); err == nil && !c.files.NewKeys {
		if key, err := parseKey(&in); err == nil {
			return key, in.data, nil
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	text, err := encodeKey(key)
	return key, text, err
}

// tls is how the CA's server is verified: by its name, as servers of the web are.
func (c *istioCA) tls() (*tls.Config, error) {
	in := &input{field: "ca.roots", file: c.cfg.Roots}
	if _, err := in.read(); err != nil {
		return nil, err
	}
	pool, _, err := parseRoots(in, time.Now())
	if err != nil {
		return nil, err
	}
	name := c.cfg.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(c.cfg.Address) // validate has looked at it
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: name, NextProtos: []string{alpnH2},
		// What crypto/tls would do is done below, where the reason for a refusal is not lost on its way through grpc.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			options := verifyOptions(cs.PeerCertificates, pool, x509.ExtKeyUsageServerAuth, time.Now())
			options.DNSName = name
			if _, err := cs.PeerCertificates[0].Verify(options); err != nil {
				return &PeerError{Reason: Untrusted, Detail: "the CA's server is not verified by ca.roots as " + name, Err: err}
			}
			return nil
		},
	}, nil
}

// check reads the files that are named.
func (c *CAConfig) check() error {
	if c.IsZero() || len(c.validate()) > 0 {
		return nil // Validate has said so
	}
	ca := &istioCA{cfg: *c}
	_, err := ca.tls()
	_, tokenErr := ca.token(context.Background())
	if tokenErr != nil {
		tokenErr = &ConfigError{Field: "ca.tokenFile", File: c.TokenFile, Reason: Unreadable, Detail: "cannot be read", Err: tokenErr, Mend: "name the file with the token that says who this gateway is"}
	}
	return errors.Join(err, tokenErr)
}

// token reads the token of now.
func (c *istioCA) token(context.Context) (string, error) {
	f, err := os.Open(c.cfg.TokenFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text := make([]byte, maxTokenBytes+1)
	n, err := f.Read(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("read %s: %w", c.cfg.TokenFile, err)
	case n > maxTokenBytes:
		return "", fmt.Errorf("%s is longer than %d bytes", c.cfg.TokenFile, maxTokenBytes)
	}
	return strings.TrimSpace(string(text[:n])), nil
}
