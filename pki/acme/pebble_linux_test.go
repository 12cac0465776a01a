package acme

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// patience is how long a test waits for another program.
const patience = 30 * time.Second

// within tries what until it succeeds.
func within(t testing.TB, name string, what func() error) {
	t.Helper()
	err := what()
	for deadline := time.Now().Add(patience); err != nil; err = what() {
		if time.Now().After(deadline) {
			t.Fatalf("%s after %v: %v", name, patience, err)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}

// site is a gateway's ingress on loopback, with ports 80 and 443 of its own and a name server that leads there.
type site struct {
	t        *testing.T
	dir      string
	httpPort int
	tlsPort  int
	dns      string
	manager  atomic.Pointer[Manager]
	failed   atomic.Int64 // handshakes
	byHTTP   atomic.Int64 // validations
	byTLS    atomic.Int64 // validations
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	plain, secure := listen(t), listen(t)
	s.httpPort, s.tlsPort = portOf(plain), portOf(secure)
	web := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m := s.manager.Load(); m != nil {
			s.byHTTP.Add(1)
			m.HTTPHandler(nil).ServeHTTP(w, r)
		}
	})}
	serving.Go(func() { _ = web.Serve(plain) }) // ends with Close below
	serving.Go(func() { s.serveTLS(secure) })   // ends when secure closes
	t.Cleanup(func() { _ = errors.Join(web.Close(), secure.Close()) })
	names := listen(t)
	s.dns = names.Addr().String()
	resolver := &dns.Server{Listener: names, Handler: dns.HandlerFunc(resolve)}
	serving.Go(func() { _ = resolver.ActivateAndServe() }) // ends with Shutdown below
	t.Cleanup(func() { _ = errors.Join(resolver.Shutdown(), names.Close()) })
	return s
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func portOf(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

// resolve leads every name to this host, but those that begin with "nowhere".
func resolve(w dns.ResponseWriter, q *dns.Msg) {
	a := new(dns.Msg)
	a.SetReply(q)
	if name := q.Question[0].Name; q.Question[0].Qtype == dns.TypeA && !strings.HasPrefix(name, "nowhere") {
		a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)})
	}
	_ = w.WriteMsg(a)
}

// serveTLS makes handshakes as an ingress does.
func (s *site) serveTLS(ln net.Listener) {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		conns.Go(func() { // ends with the handshake, which has a deadline
			defer nc.Close()
			m := s.manager.Load()
			if m == nil {
				return
			}
			_ = nc.SetDeadline(time.Now().Add(patience))
			conn := tls.Server(nc, &tls.Config{GetCertificate: m.GetCertificate, GetConfigForClient: m.GetConfigForClient})
			if conn.Handshake() != nil {
				s.failed.Add(1)
			} else if conn.ConnectionState().NegotiatedProtocol == ALPNProto {
				s.byTLS.Add(1)
			}
		})
	}
}

// handshake returns the chain that a client of the site gets for a name.
func (s *site) handshake(name string, roots *x509.CertPool) ([]*x509.Certificate, error) {
	conn, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(s.tlsPort), &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates, nil
}

// open opens a Manager whose listeners are the site's.
func (s *site) open(cfg Config) (*Manager, *logs) {
	s.t.Helper()
	l, log := newLogs()
	m, err := open(cfg, Env{Dir: filepath.Join(s.dir, "state"), Log: log}, timing{firstRetry: 200 * time.Millisecond, orderLimit: patience, followPoll: 100 * time.Millisecond})
	if err != nil {
		s.t.Fatal(err)
	}
	s.manager.Store(m)
	s.t.Cleanup(func() { m.Close() })
	return m, l
}

// pebble is a running Pebble.
type pebble struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   *logs
	ended chan struct{}
	addr  string
	admin string
	roots string // file with the root of its own server
}

// pebbleConfig is what differs from test to test.
type pebbleConfig struct {
	addr     string // "" for a free port
	env      []string
	validity int               // seconds, 0 = Pebble's default
	macs     map[string]string // external accounts; not nil: they are required
}

// startPebble starts Pebble, which validates at the site's ports.
func (s *site) startPebble(pc pebbleConfig) *pebble {
	s.t.Helper()
	path, err := exec.LookPath("pebble")
	if err != nil {
		s.t.Fatal("pebble is not installed: run `make setup`")
	}
	p := &pebble{t: s.t, out: &logs{}, ended: make(chan struct{}), addr: pc.addr, admin: freeAddr(s.t), roots: filepath.Join(s.dir, "pebble-root.pem")}
	if p.addr == "" {
		p.addr = freeAddr(s.t)
	}
	file := filepath.Join(s.dir, "pebble.json")
	certFile, keyFile := s.serverCertificate(p.roots)
	config := map[string]any{"listenAddress": p.addr, "managementListenAddress": p.admin, "certificate": certFile, "privateKey": keyFile,
		"httpPort": s.httpPort, "tlsPort": s.tlsPort, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"domainBlocklist": []string{"blocked.example"}, "externalAccountBindingRequired": pc.macs != nil, "externalAccountMACKeys": pc.macs,
		"profiles": map[string]any{"short": map[string]any{"description": "brief", "validityPeriod": pc.validity}}}
	data, err := json.Marshal(map[string]any{"pebble": config})
	if err != nil {
		s.t.Fatal(err)
	}
	writeTestFile(s.t, file, data)
	p.cmd = exec.Command(path, "-config", file, "-strict", "-dnsserver", s.dns)
	p.cmd.Env = append(append(os.Environ(), "PEBBLE_VA_NOSLEEP=1"), pc.env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { // ends with the process, which stop ends and waits for
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	s.t.Cleanup(p.stop)
	within(s.t, "Pebble", func() error {
		select {
		case <-p.ended:
			s.t.Fatalf("Pebble has ended: %s", p.out)
		default:
		}
		_, err := p.get("https://" + p.addr + "/dir")
		return err
	})
	return p
}

func freeAddr(t testing.TB) string {
	t.Helper()
	ln := listen(t)
	defer ln.Close()
	return ln.Addr().String()
}

func (p *pebble) stop() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// serverCertificate makes the certificate of Pebble's own server and writes its root, if that is not done.
func (s *site) serverCertificate(roots string) (certFile, keyFile string) {
	s.t.Helper()
	certFile, keyFile = filepath.Join(s.dir, "pebble.pem"), filepath.Join(s.dir, "pebble.key")
	if _, err := os.Stat(keyFile); err == nil {
		return certFile, keyFile
	}
	key := newKey(s.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(day)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	writeTestFile(s.t, certFile, cert)
	writeTestFile(s.t, roots, cert)
	writeTestFile(s.t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return certFile, keyFile
}

func (p *pebble) get(url string) ([]byte, error) {
	pool, err := readRoots(p.roots)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	res, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, errors.New(res.Status)
	}
	return io.ReadAll(res.Body)
}

// caRoots are the roots of the certificates that this Pebble issues.
func (p *pebble) caRoots() *x509.CertPool {
	p.t.Helper()
	data, err := p.get("https://" + p.admin + "/roots/0")
	if err != nil {
		p.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		p.t.Fatalf("Pebble's root is %q", data)
	}
	return pool
}

// orders is how many orders Pebble was asked for, nonces that it refused included.
func (p *pebble) orders() int { return p.out.count("POST /order-plz") }

// config is for certificates from this Pebble.
func (p *pebble) config(names ...string) Config {
	return Config{Directory: "https://" + p.addr + "/dir", Roots: p.roots, Names: names, AgreeTOS: true, OrdersPerHour: 20}
}

// hasCert waits for a certificate.
func hasCert(t testing.TB, m *Manager, name string) *x509.Certificate {
	t.Helper()
	var leaf *x509.Certificate
	within(t, "certificate for "+name, func() (err error) {
		if leaf, err = certFor(m, name); err != nil {
			return err
		}
		got := status(t, m, name)
		if got.LastError == nil && got.NextTry.IsZero() && !m.Following() {
			return errors.New("it is not kept yet")
		}
		return got.LastError
	})
	return leaf
}

// failsWith waits for an order to fail and says why.
func failsWith(t testing.TB, m *Manager, name string, step Step, words ...string) {
	t.Helper()
	within(t, "failure of "+name, func() error {
		fault, ok := errors.AsType[*IssueError](status(t, m, name).LastError)
		if !ok || fault.Step != step {
			return fmt.Errorf("LastError is %v, want step %s", status(t, m, name).LastError, step)
		}
		for _, word := range words {
			if !strings.Contains(fault.Error(), word) {
				return fmt.Errorf("LastError is %w, want it to say %q", fault, word)
			}
		}
		return nil
	})
}

func TestForeignPebbleIssues(t *testing.T) {
	for _, tc := range []struct {
		name       string
		challenges []string
		env        []string
		length     int // of the chain
	}{
		{"http-01", []string{HTTP01}, nil, 2},
		{"tls-alpn-01", []string{TLSALPN01}, nil, 2},
		{"half of the nonces refused", nil, []string{"PEBBLE_WFE_NONCEREJECT=50"}, 2},
		{"slow validation, long chain", nil, []string{"PEBBLE_VA_NOSLEEP=0", "PEBBLE_VA_SLEEPTIME=2", "PEBBLE_CHAIN_LENGTH=3"}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := s.startPebble(pebbleConfig{env: tc.env})
			cfg := p.config("A.example", "b.example", "xn--bcher-kva.example")
			cfg.Challenges, cfg.Email = tc.challenges, "ops@example.com"
			m, l := s.open(cfg)
			for _, name := range []string{"a.example", "b.example", "xn--bcher-kva.example"} {
				leaf := hasCert(t, m, name)
				chain, err := s.handshake(name, p.caRoots())
				if err != nil || !chain[0].Equal(leaf) || len(chain) != tc.length {
					t.Errorf("handshake for %s = %d certificates, %v, want %d that lead to Pebble's root", name, len(chain), err, tc.length)
				}
			}
			if h, a := s.byHTTP.Load(), s.byTLS.Load(); (h > 0) != (len(tc.challenges) == 1 && tc.challenges[0] == HTTP01) || (h > 0) == (a > 0) {
				t.Errorf("%d validations by http-01 and %d by tls-alpn-01, want one kind", h, a)
			}
			if n := p.out.count("There are now 1 accounts"); n != 1 || p.out.count("There are now 2 accounts") != 0 {
				t.Errorf("Pebble made %d first accounts, want one account for all names", n)
			}
			if strings.Contains(l.String(), "PRIVATE KEY") {
				t.Error("the log has a key")
			}
			checkModes(t, m.store)
		})
	}
}

// A restart orders nothing, and a new name takes the account that is there. What Pebble has authorized before is used.
func TestForeignPebbleRestart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.startPebble(pebbleConfig{env: []string{"PEBBLE_AUTHZREUSE=100", "PEBBLE_WFE_NONCEREJECT=0"}})
	m, _ := s.open(p.config("a.example"))
	first := hasCert(t, m, "a.example")
	m.Close()
	if n := p.orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	m, _ = s.open(p.config("a.example", "b.example"))
	if !mustCert(t, m, "a.example").Equal(first) {
		t.Error("the kept certificate is not in use at once")
	}
	hasCert(t, m, "b.example")
	m.Close()
	if n := p.orders(); n != 2 {
		t.Errorf("%d orders, want one more for the new name", n)
	}
	if err := os.Remove(m.store.certPath("a.example")); err != nil {
		t.Fatal(err)
	}
	validated := p.out.count("Pulled a task")
	m, _ = s.open(p.config("a.example"))
	if hasCert(t, m, "a.example").Equal(first) {
		t.Error("the lost certificate is back")
	}
	if n := p.out.count("Pulled a task"); n != validated {
		t.Errorf("%d validations of a name that is authorized, want none", n-validated)
	}
	if n := p.out.count("accounts in memory"); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
}

func TestForeignPebbleRenewal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.startPebble(pebbleConfig{validity: 15, env: []string{"PEBBLE_AUTHZREUSE=0"}})
	cfg := p.config("a.example")
	cfg.Profile = "short"
	m, _ := s.open(cfg)
	first := hasCert(t, m, "a.example")
	if life := first.NotAfter.Sub(first.NotBefore); life > 20*time.Second {
		t.Fatalf("the certificate lives %v, want it to be the short profile's", life)
	}
	roots := p.caRoots()
	failed := s.failed.Load()
	renewals, last := 0, first
	within(t, "a renewal", func() error {
		chain, err := s.handshake("a.example", roots)
		if err != nil {
			t.Fatalf("handshake during a renewal: %v", err)
		}
		if !chain[0].Equal(last) {
			renewals, last = renewals+1, chain[0]
			if chain[0].NotBefore.After(first.NotAfter) {
				t.Error("the renewal came after the end")
			}
		}
		if renewals < 1 {
			return fmt.Errorf("%d renewals", renewals)
		}
		return nil
	})
	if n := s.failed.Load(); n != failed {
		t.Errorf("%d handshakes failed", n-failed)
	}
}

func TestForeignPebbleRefusals(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.startPebble(pebbleConfig{})
	m, l := s.open(p.config("nowhere.example", "blocked.example", "a.example"))
	hasCert(t, m, "a.example")
	failsWith(t, m, "nowhere.example", StepChallenge, "Could not resolve")
	failsWith(t, m, "blocked.example", StepOrder, "rejectedIdentifier", "use another CA")
	wantNoCert(t, m, "nowhere.example", NotIssued)
	for _, want := range []string{"host=nowhere.example", "host=blocked.example"} {
		if l.count(want) == 0 {
			t.Errorf("log has no %q", want)
		}
	}
}

// A name whose port 443 does not lead here fails by TLS-ALPN-01 and is issued by HTTP-01.
func TestForeignPebbleTakesTheOtherChallenge(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tlsPort = portOf(closed(t))
	p := s.startPebble(pebbleConfig{})
	m, _ := s.open(p.config("a.example"))
	hasCert(t, m, "a.example")
	if got := status(t, m, "a.example"); got.Failed != 1 || got.Issued != 1 {
		t.Errorf("Status = %+v, want one failure and a success", got)
	}
}

// closed is a listener at whose address nobody listens any more.
func closed(t testing.TB) net.Listener {
	t.Helper()
	ln := listen(t)
	ln.Close()
	return ln
}

func TestForeignPebbleDownAtStart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	roots := filepath.Join(s.dir, "pebble-root.pem")
	addr := freeAddr(t)
	s.serverCertificate(roots)
	m, _ := s.open(Config{Directory: "https://" + addr + "/dir", Roots: roots, Names: []string{"a.example"}, AgreeTOS: true})
	failsWith(t, m, "a.example", StepAccount, "connection refused")
	p := s.startPebble(pebbleConfig{addr: addr})
	hasCert(t, m, "a.example")
	// Pebble forgets everything with its end, so this is another CA with the same URL: the account is made anew.
	p.stop()
	m.Close()
	p = s.startPebble(pebbleConfig{addr: addr})
	m, l := s.open(p.config("a.example", "b.example"))
	hasCert(t, m, "b.example")
	if l.count("does not know the ACME account any more") != 1 {
		t.Errorf("log %s, want it to say that the account was forgotten", l)
	}
}

func TestForeignPebbleExternalAccount(t *testing.T) {
	t.Parallel()
	const mac = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	s := newSite(t)
	p := s.startPebble(pebbleConfig{macs: map[string]string{"kid-1": mac}})
	m, _ := s.open(p.config("a.example"))
	failsWith(t, m, "a.example", StepAccount, "externalAccount")
	m.Close()

	keyFile := filepath.Join(s.dir, "hmac")
	cfg := p.config("a.example")
	cfg.ExternalAccount = ExternalAccountConfig{KID: "kid-1", KeyFile: keyFile}
	writeTestFile(t, keyFile, []byte(strings.ToLower(mac)))
	m, l := s.open(cfg)
	failsWith(t, m, "a.example", StepAccount, "unauthorized", "externalAccount is right")
	m.Close()
	if strings.Contains(l.String(), strings.ToLower(mac)) {
		t.Error("the log has the HMAC key")
	}

	writeTestFile(t, keyFile, []byte(mac+"\n"))
	m, _ = s.open(cfg)
	hasCert(t, m, "a.example")
	m.Close()
	if p.out.count("Successful newAccount Binding") != 1 {
		t.Error("Pebble has not bound the account")
	}

	// The account is bound for good: what is kept needs no key of the CA any more.
	m, _ = s.open(p.config("a.example", "b.example"))
	hasCert(t, m, "b.example")
}

// Processes take over from each other with one folder and one Pebble.
func TestForeignPebbleTakeOver(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.startPebble(pebbleConfig{})
	m1, _ := s.open(p.config("a.example"))
	first := hasCert(t, m1, "a.example")
	m2, _ := s.open(p.config("a.example", "b.example"))
	within(t, "the second to follow", func() error {
		if !m2.Following() {
			return errors.New("it does not")
		}
		return nil
	})
	if !mustCert(t, m2, "a.example").Equal(first) {
		t.Error("the second serves another certificate")
	}
	wantNoCert(t, m2, "b.example", NotIssued)
	m1.Close()
	hasCert(t, m2, "b.example")
}
