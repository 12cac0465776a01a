package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/pki/spiffe"
)

// TestMain checks that no test left a goroutine, and is the other process of TestOpenStateProcesses.
func TestMain(m *testing.M) {
	if dir := os.Getenv(openStateEnv); dir != "" {
		os.Exit(openStateProcess(dir))
	}
	before := runtime.NumGoroutine()
	code := m.Run()
	if code == 0 && flag.Lookup("test.fuzz").Value.String() == "" {
		code = leaked(before)
	}
	os.Exit(code)
}

// leaked waits until there are no more goroutines than before, as those of ended tests may still be on their way out.
func leaked(before int) int {
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			fmt.Fprintf(os.Stderr, "goroutines left: %s\n", stacks[:runtime.Stack(stacks, true)])
			return 1
		}
	}
	return 0
}

const testTD = "cluster.local"

func mustID(t testing.TB, s string) spiffe.ID {
	t.Helper()
	id, err := spiffe.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func webID(t testing.TB) spiffe.ID { return mustID(t, "spiffe://cluster.local/ns/default/sa/web") }

func mustCA(t testing.TB, td string) *CA {
	t.Helper()
	ca, err := NewCA(td)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// fixedSource returns a Source of an identity that ca issues.
func fixedSource(t testing.TB, ca *CA, id string) *Source {
	t.Helper()
	cert, key, err := ca.Issue(mustID(t, id), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Parse(cert, key, ca.PEM())
	if err != nil {
		t.Fatal(err)
	}
	return Fixed(m)
}

// leafSpec is a certificate that a test wants, usually a wrong one.
type leafSpec struct {
	template *x509.Certificate
	key      crypto.Signer
	uris     []string // raw URI names; nil: the usual one
	dns      []string
	signedBy *CA
}

// leaf signs a certificate like the ones that Issue makes, after change had its way with it.
func leaf(t testing.TB, ca *CA, change func(*leafSpec)) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	spec := leafSpec{
		template: &x509.Certificate{
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			BasicConstraintsValid: true,
		},
		uris: []string{webID(t).String()}, signedBy: ca,
	}
	if change != nil {
		change(&spec)
	}
	if spec.key == nil {
		spec.key = newECKey(t, elliptic.P256())
	}
	if len(spec.uris)+len(spec.dns) > 0 {
		spec.template.ExtraExtensions = append(spec.template.ExtraExtensions, sanExtension(t, spec.uris, spec.dns))
	}
	der, err := x509.CreateCertificate(rand.Reader, spec.template, spec.signedBy.cert, spec.key.Public(), spec.signedBy.key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, _ := x509.ParseCertificate(der) // nil for names that crypto/x509 itself refuses
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: spec.key}, parsed
}

func newECKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sanExtension makes a critical subject alternative name extension of raw names, however odd.
func sanExtension(t testing.TB, uris, dns []string) pkix.Extension {
	t.Helper()
	var names []asn1.RawValue
	for _, name := range dns {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(name)})
	}
	for _, uri := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
	}
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: der}
}

// pemOf writes a certificate with its chain, and its key, as PEM.
func pemOf(t testing.TB, cert tls.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	for _, der := range cert.Certificate {
		certPEM = append(certPEM, encodeCert(der)...)
	}
	keyPEM, err := encodeKey(cert.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return certPEM, keyPEM
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// intermediate makes a CA below ca.
func intermediate(t testing.TB, ca *CA, change func(*x509.Certificate)) *CA {
	t.Helper()
	key := newECKey(t, elliptic.P256())
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: fmt.Sprintf("intermediate %d", time.Now().UnixNano())},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{cert: cert, key: key}
}

// longRoot makes a root that, unlike ours, may have any number of CAs below it.
func longRoot(t testing.TB, change func(*x509.Certificate)) *CA {
	t.Helper()
	key := newECKey(t, elliptic.P256())
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "long root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{cert: cert, key: key}
}

// pair is the result of a handshake on loopback. The errors are what each side saw until the server's first
// byte had arrived or had become impossible.
type pair struct {
	client, server       *tls.Conn
	clientErr, serverErr error
}

// handshake connects a client and a server; the connections are closed when the test ends.
func handshake(t testing.TB, serverCfg, clientCfg *tls.Config) pair {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var p pair
	var wg sync.WaitGroup
	// Ends with the handshake, for which wg.Wait waits.
	wg.Go(func() {
		nc, err := ln.Accept()
		if err != nil {
			p.serverErr = err
			return
		}
		p.server = tls.Server(nc, serverCfg)
		if p.serverErr = shake(p.server); p.serverErr != nil {
			drainAndClose(nc)
			return
		}
		_, p.serverErr = p.server.Write([]byte{'k'})
	})
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p.client = tls.Client(nc, clientCfg)
	if p.clientErr = shake(p.client); p.clientErr == nil {
		_, p.clientErr = io.ReadFull(p.client, make([]byte, 1))
	}
	if p.clientErr != nil {
		nc.Close()
	}
	wg.Wait()
	t.Cleanup(func() {
		p.client.Close()
		if p.server != nil {
			p.server.Close()
		}
	})
	return p
}

func shake(c *tls.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return c.HandshakeContext(ctx)
}

// drainAndClose closes after the alert has been sent and without a TCP reset overtaking it.
func drainAndClose(nc net.Conn) {
	if tc, ok := nc.(*net.TCPConn); ok {
		_ = tc.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, nc)
	nc.Close()
}

// echo shows that a connection still carries bytes both ways.
func (p pair) echo(t *testing.T) {
	t.Helper()
	for _, c := range [][2]*tls.Conn{{p.client, p.server}, {p.server, p.client}} {
		written := make(chan error, 1)
		// Ends when the other side has read, or with the connection; the receive below waits for it.
		go func() {
			_, err := c[0].Write([]byte("ping"))
			written <- err
		}()
		got := make([]byte, 4)
		_, err := io.ReadFull(c[1], got)
		if werr := <-written; werr != nil || err != nil || string(got) != "ping" {
			t.Fatalf("an old connection: write %v, read %q, %v", werr, got, err)
		}
	}
}

// logs collects log lines.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newLogs() (*logs, *slog.Logger) {
	l := &logs{}
	return l, slog.New(slog.NewTextHandler(l, nil))
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// reasons returns the "field reason" of each ConfigError that err joins.
func reasons(err error) []string {
	var found []string
	var walk func(error)
	walk = func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				walk(e)
			}
			return
		}
		if ce, ok := errors.AsType[*ConfigError](err); ok {
			found = append(found, ce.Field+" "+string(ce.Reason))
		} else if err != nil {
			found = append(found, "other: "+err.Error())
		}
	}
	walk(err)
	return found
}

// put writes a file in dir and returns its path.
func put(t testing.TB, dir, name string, data []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}
