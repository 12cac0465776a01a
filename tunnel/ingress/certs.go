package ingress

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/tunnel"
)

// lookEvery is how long certificate files are believed to be as they were.
const lookEvery = time.Second

// certFile is a certificate in files, which are read again when they have changed. It may be used concurrently.
type certFile struct {
	cert, key string
	log       *slog.Logger
	current   atomic.Pointer[tls.Certificate]
	looked    atomic.Int64 // Unix time in nanoseconds

	mu   sync.Mutex // held while reading
	seen [2]fs.FileInfo
}

// openCert reads the files of c. It fails if they cannot be used.
func openCert(c tunnel.CertificateConfig, log *slog.Logger) (*certFile, error) {
	f := &certFile{cert: c.Cert, key: cmp.Or(c.Key, c.Cert), log: log}
	f.looked.Store(time.Now().UnixNano())
	return f, f.read()
}

// CheckCertificate reads the files of c and says what is wrong with them.
func CheckCertificate(c tunnel.CertificateConfig) error {
	_, err := openCert(c, slog.New(slog.DiscardHandler))
	return err
}

// get returns the certificate of now. While the files cannot be used it is the one before.
func (f *certFile) get() *tls.Certificate {
	now := time.Now().UnixNano()
	if last := f.looked.Load(); now-last > int64(lookEvery) && f.looked.CompareAndSwap(last, now) && f.changed() {
		if err := f.read(); err != nil {
			f.log.Error("certificate not read again, the one before goes on", "err", err)
		} else {
			f.log.Info("certificate read again", "host", strings.Join(f.current.Load().Leaf.DNSNames, ","))
		}
	}
	return f.current.Load()
}

// changed reports whether one of the files is another than was read.
func (f *certFile) changed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if before := f.seen[i]; err == nil && (!os.SameFile(info, before) || info.Size() != before.Size() || !info.ModTime().Equal(before.ModTime())) {
			return true
		}
	}
	return false
}

func (f *certFile) read() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		f.seen[i] = info
	}
	if mode := f.seen[1].Mode().Perm(); mode&0o077 != 0 {
		if os.Geteuid() != 0 { // a secret that is mounted is often so
			f.log.Warn("the key of a certificate can be read by others", "reason", fmt.Sprintf("mode %#o of %s", mode, f.key))
		} else {
			return fmt.Errorf("certificate: the key in %s can be read by others (mode %#o); chmod 600 %s", f.key, mode, f.key)
		}
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", f.cert, err)
	}
	if time.Now().After(c.Leaf.NotAfter) {
		f.log.Warn("certificate has ended", "host", strings.Join(c.Leaf.DNSNames, ","), "reason", "it ended at "+c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	f.current.Store(&c)
	return nil
}

// certificates has files by the names in their certificates.
type certificates struct{ files []*certFile }

// find returns the certificate for a server name in lower case: one that has it, else one with a wildcard for it. Of several that
// client can use the first is taken; hello may be nil.
func (c *certificates) find(name string, hello *tls.ClientHelloInfo) *tls.Certificate {
	var wild, any *tls.Certificate
	for _, f := range c.files {
		cert := f.get()
		exact, wildcard := names(cert.Leaf, name)
		if !exact && !wildcard {
			continue
		}
		if any == nil {
			any = cert
		}
		if hello != nil && hello.SupportsCertificate(cert) != nil {
			continue // such as RSA only
		}
		if exact {
			return cert
		}
		if wild == nil {
			wild = cert
		}
	}
	if wild != nil {
		return wild
	}
	return any
}

// names reports whether a certificate has a name, or a wildcard for it.
func names(leaf *x509.Certificate, name string) (exact, wildcard bool) {
	_, parent, _ := strings.Cut(name, ".")
	for _, n := range leaf.DNSNames {
		if strings.EqualFold(n, name) {
			return true, false
		}
		if below, ok := strings.CutPrefix(n, "*."); ok && parent != "" && strings.EqualFold(below, parent) {
			wildcard = true
		}
	}
	return false, wildcard
}
