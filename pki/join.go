package pki

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
)

const (
	// pinPrefix begins a pin, as in "sha256:" and 64 hexadecimal digits.
	pinPrefix = "sha256:"
	// caAddressFile says where the CA is that a folder's identity is renewed by.
	caAddressFile = "ca.address"
	// replacedSuffix is what files are called that a join puts aside.
	replacedSuffix = ".before-join"
)

// JoinConfig says how a host joins the mesh of a CA on another one.
type JoinConfig struct {
	// Dir is the state folder, made if need be.
	Dir string
	// Address is host:port of the CA.
	Address string
	// Pin is what Authority.Pin returns: the CA is known by it.
	Pin string
	// Token is a join token, or any other that the CA takes.
	Token string
	// Replace puts a CA or an identity of the folder's own aside.
	Replace bool
}

// Member is what a host has after it joined or renewed.
type Member struct {
	ID       spiffe.ID
	NotAfter time.Time
}

// Join makes a key in a state folder, has a CA sign a certificate for it, and writes what a gateway needs to use and
// renew it: identity.key, identity.pem, ca.pem (the roots), ca.crl and ca.address. The CA must lead to the pinned root
// and have the identity of a CA, so nobody else can answer in its place. A folder with a CA of its own, which a gateway
// made at its first start, is refused with a *ConfigError unless Replace is set. If it fails, the next try uses the same
// key, and a token that was used for that key is good still. It blocks until ctx ends at most.
func Join(ctx context.Context, cfg JoinConfig) (Member, error) {
	pin, err := parsePin(cfg.Pin)
	if err != nil {
		return Member{}, err
	}
	if err := checkCAAddress(cfg.Address); err != nil {
		return Member{}, err
	}
	key, err := prepareJoin(cfg)
	if err != nil {
		return Member{}, err
	}
	p := &pinned{pin: pin}
	e := &enrolment{dir: cfg.Dir, addr: cfg.Address, token: cfg.Token, key: key, tls: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{alpnH2},
		// VerifyConnection does all of it: the CA is known by its root's key and by its SPIFFE ID, not by a host name.
		InsecureSkipVerify: true, VerifyConnection: p.verify,
	}}
	m, err := e.run(ctx, spiffe.ID{})
	if err != nil {
		return Member{}, fmt.Errorf("join by the CA at %s: %w", cfg.Address, err)
	}
	return m, nil
}

// parsePin reads a pin.
func parsePin(text string) (pin [sha256.Size]byte, err error) {
	digits, ok := strings.CutPrefix(text, pinPrefix)
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != len(pin) {
		return pin, &ConfigError{Field: "pin", Reason: BadValue, Detail: fmt.Sprintf("%q is none", printable(text)),
			Mend: "it is \"sha256:\" and 64 hexadecimal digits, as `gateway ca token` prints it"}
	}
	return [sha256.Size]byte(raw), nil
}

func checkCAAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" || len(addr) > 300 || strings.ContainsAny(addr, " \t\r\n/") {
		return &ConfigError{Field: "ca", Reason: BadValue, Detail: fmt.Sprintf("%q is no address of a CA", printable(addr)), Mend: "it is like ca.example:15012"}
	}
	return nil
}

// prepareJoin makes the folder ready and returns the key, the one of the last try if there is one.
func prepareJoin(cfg JoinConfig) (crypto.Signer, error) {
	unlock, err := openStateDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	keyFile := filepath.Join(cfg.Dir, identityKeyFile)
	own := filepath.Join(cfg.Dir, caKeyFile)
	switch {
	case exists(filepath.Join(cfg.Dir, authorityDir)):
		return nil, &ConfigError{Field: "state", File: cfg.Dir, Reason: BadValue, Detail: "this folder is that of a CA that issues to others",
			Mend: "name another folder with --state DIR"}
	case exists(own) && !cfg.Replace:
		return nil, &ConfigError{Field: "state", File: cfg.Dir, Reason: BadValue, Err: fs.ErrExist,
			Detail: "a gateway has made a CA of its own in this folder",
			Mend:   "put it aside with --replace, or name another folder with --state DIR"}
	case cfg.Replace:
		for _, name := range []string{caKeyFile, caCertFile, identityCertFile, identityKeyFile} {
			path := filepath.Join(cfg.Dir, name)
			if err := os.Rename(path, path+replacedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	key, err := readKey(keyFile)
	if err != nil || key != nil {
		return key, err
	}
	return makeKey(keyFile)
}

// pinned verifies a CA that is known by its root's key only.
type pinned struct{ pin [sha256.Size]byte }

// verify is tls.Config.VerifyConnection. It refuses with a *PeerError.
func (p *pinned) verify(cs tls.ConnectionState) error {
	certs := cs.PeerCertificates
	if len(certs) == 0 {
		return &PeerError{Reason: NoCertificate, Detail: "it sent no certificate"}
	}
	id, idErr := spiffe.FromCertificate(certs[0])
	if len(certs) > maxChain {
		return &PeerError{Reason: TooMany, ID: id, Detail: fmt.Sprintf("it sent %d certificates; at most %d are taken", len(certs), maxChain)}
	}
	roots := x509.NewCertPool()
	found := false
	for _, c := range certs[1:] {
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		if subtle.ConstantTimeCompare(sum[:], p.pin[:]) == 1 && keyProblem(c) == "" {
			roots.AddCert(c)
			found = true
		}
	}
	if !found {
		return &PeerError{Reason: Untrusted, ID: id, Detail: "it does not show the root that the pin names; it is another CA, or its root was replaced " +
			"since: have the command printed again"}
	}
	if idErr != nil {
		return &PeerError{Reason: NoIdentity, Err: idErr, Detail: "its certificate names no workload"}
	}
	// Every member of the mesh has a certificate that leads to the root; only the CA has this name.
	if want, err := spiffe.New(id.TrustDomain(), authorityNamespace, authorityAccount); err != nil || id != want {
		return &PeerError{Reason: NotAllowed, ID: id, Detail: "it is a member of the mesh and not its CA; check the address"}
	}
	if reason, detail := leafProblem(certs[0]); reason != "" {
		return &PeerError{Reason: reason, ID: id, Detail: detail}
	}
	if _, err := certs[0].Verify(verifyOptions(certs, roots, x509.ExtKeyUsageServerAuth, time.Now())); err != nil {
		return &PeerError{Reason: Untrusted, ID: id, Detail: "its certificate chain is not valid", Err: err}
	}
	return nil
}

// makeCSR makes a CSR for a key, with id as its name unless that is zero.
func makeCSR(key crypto.Signer, id spiffe.ID) (string, error) {
	template := new(x509.CertificateRequest)
	if !id.IsZero() {
		uri, err := idURL(id)
		if err != nil {
			return "", err
		}
		template.URIs = append(template.URIs, uri)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return "", fmt.Errorf("make a CSR: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// enrolment is one try to get a certificate into a folder.
type enrolment struct {
	dir, addr, token string
	key              crypto.Signer
	tls              *tls.Config
}

// run gets a certificate, for id unless that is zero, checks it and writes it, with what else the CA serves.
func (e *enrolment) run(ctx context.Context, id spiffe.ID) (Member, error) {
	csr, err := makeCSR(e.key, id)
	if err != nil {
		return Member{}, err
	}
	client, err := istioca.NewClient(istioca.ClientConfig{Address: e.addr, TLS: e.tls,
		Token: func(context.Context) (string, error) { return e.token, nil }})
	if err != nil {
		return Member{}, err
	}
	defer client.Close()
	chain, err := client.CreateCertificate(ctx, csr, 0)
	if err != nil {
		return Member{}, err
	}
	files, err := e.fetch(ctx)
	if err != nil {
		return Member{}, err
	}
	m, certPEM, err := e.check(chain, files.roots, id)
	if err != nil {
		return Member{}, fmt.Errorf("the CA's answer: %w", err)
	}
	return Member{ID: m.ID, NotAfter: m.NotAfter}, e.write(files, certPEM)
}

// check refuses an answer that is not for our key, is for another name than id (unless that is zero), or does not
// lead to the roots.
func (e *enrolment) check(chain []string, rootsPEM []byte, id spiffe.ID) (m *Material, certPEM []byte, err error) {
	if len(chain) < 2 || len(chain) > maxChain {
		return nil, nil, fmt.Errorf("a chain of %d certificates, root included", len(chain))
	}
	certPEM = []byte(strings.Join(chain[:len(chain)-1], "")) // the root is no part of an identity
	keyPEM, err := encodeKey(e.key)
	if err != nil {
		return nil, nil, err
	}
	if m, err = Parse(certPEM, keyPEM, rootsPEM); err != nil {
		return nil, nil, err
	}
	switch {
	case !leadsToRoots(m):
		return nil, nil, errors.New("the certificate does not lead to the CA's own roots")
	case !id.IsZero() && m.ID != id:
		return nil, nil, fmt.Errorf("a certificate for %s, and we are %s", m.ID, id)
	}
	return m, certPEM, nil
}

// write puts everything in place, the certificate last.
func (e *enrolment) write(files *caFiles, certPEM []byte) error {
	unlock, err := lockStateDir(e.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := files.write(e.dir); err != nil {
		return err
	}
	if err := writeIfOther(filepath.Join(e.dir, caAddressFile), []byte(e.addr+"\n")); err != nil {
		return err
	}
	keyPEM, err := encodeKey(e.key)
	if err != nil {
		return err
	}
	if err := writeIfOther(filepath.Join(e.dir, identityKeyFile), keyPEM); err != nil {
		return err
	}
	return writeFile(filepath.Join(e.dir, identityCertFile), certPEM)
}
