package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/tunneltest/memnet"
)

// fakeCA is a small ACME server in memory, for what a real one does not do on demand. It validates for real, and does
// not check signatures: TestForeignPebble has a server that does.
type fakeCA struct {
	t    testing.TB
	host string
	url  string
	addr netip.AddrPort
	key  *ecdsa.PrivateKey
	root *x509.Certificate

	server *http.Server
	ln     *memnet.Listener
	served sync.WaitGroup

	mu       sync.Mutex
	down     bool                                               // every request gets 503
	life     time.Duration                                      // of certificates
	offers   []string                                           // types of challenges
	broken   map[string]string                                  // name → why its validation fails
	hook     func(w http.ResponseWriter, step, arg string) bool // answers in place of the CA if it returns true
	sign     func(csr *x509.CertificateRequest) [][]byte        // makes the chain in place of the CA
	manager  *Manager                                           // whom to validate
	accounts map[string]int                                     // thumbprint → number
	emails   map[int]string                                     // account → contact
	orders   []*fakeOrder
	steps    map[string]int // requests by step
	tried    []string       // names and types of validations
}

// fakeOrder is one order with its one authorization.
type fakeOrder struct {
	name, status, problem, typ string
	token, thumb               string
	at                         time.Time
	chain                      []byte
}

func newFakeCA(t testing.TB, network *memnet.Net) *fakeCA {
	t.Helper()
	ca := &fakeCA{t: t, host: "ca.test", life: 90 * 24 * time.Hour, offers: []string{"dns-01", HTTP01, TLSALPN01},
		broken: map[string]string{}, accounts: map[string]int{}, emails: map[int]string{}, steps: map[string]int{}}
	ca.url = "https://" + ca.host
	ca.key = newKey(t)
	now := time.Now()
	ca.root = ca.make(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(20, 0, 0)}, nil, ca.key)
	own := newKey(t)
	leaf := ca.make(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{ca.host}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.AddDate(20, 0, 0)}, ca.root, own)
	var err error
	if ca.ln, err = network.Listen("192.0.2.1:443"); err != nil {
		t.Fatal(err)
	}
	ca.addr = ca.ln.AddrPort()
	ca.server = &http.Server{Handler: ca, ErrorLog: log.New(io.Discard, "", 0)}
	cfg := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: own}}}
	ca.served.Go(func() { _ = ca.server.Serve(tls.NewListener(ca.ln, cfg)) }) // ends with close, which waits
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// make signs a certificate with the CA's key; parent is nil for its own.
func (ca *fakeCA) make(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), ca.key)
	if err != nil {
		ca.t.Error(err)
		return nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Error(err)
	}
	return c
}

func (ca *fakeCA) close() {
	_ = ca.server.Close()
	ca.served.Wait()
}

func (ca *fakeCA) rootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw})
}

// set changes the CA while it is used.
func (ca *fakeCA) set(change func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	change()
}

func (ca *fakeCA) validates(m *Manager) { ca.set(func() { ca.manager = m }) }

// count is how many requests of a step there were: dir, nonce, account, order, authz, challenge, poll, finalize, cert.
func (ca *fakeCA) count(step string) int {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.steps[step]
}

func (ca *fakeCA) total() (n int) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	for _, count := range ca.steps {
		n += count
	}
	return n
}

// ordered returns when orders for a name were made.
func (ca *fakeCA) ordered(name string) (times []time.Time) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	for _, o := range ca.orders {
		if o.name == name {
			times = append(times, o.at)
		}
	}
	return times
}

// template is what the CA signs for a name.
func (ca *fakeCA) template(names ...string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		ca.t.Error(err)
	}
	return &x509.Certificate{SerialNumber: serial, DNSNames: names, NotBefore: time.Now(), NotAfter: time.Now().Add(ca.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true}
}

// signFor signs template for the key of a request.
func (ca *fakeCA) signFor(template *x509.Certificate, key any) []byte {
	der, err := x509.CreateCertificate(rand.Reader, template, ca.root, key, ca.key)
	if err != nil {
		ca.t.Error(err)
	}
	return der
}

// ServeHTTP implements http.Handler.
func (ca *fakeCA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	step, arg := path.Split(strings.TrimPrefix(r.URL.Path, "/"))
	step = strings.Trim(step, "/")
	if step == "" {
		step, arg = arg, ""
	}
	ca.mu.Lock()
	ca.steps[step]++
	down, hook := ca.down, ca.hook
	ca.mu.Unlock()
	w.Header().Set("Replay-Nonce", rand.Text())
	if down {
		problem(w, http.StatusServiceUnavailable, "serverInternal", "down for maintenance")
		return
	}
	if hook != nil && hook(w, step, arg) {
		return
	}
	var jws struct{ Protected, Payload string }
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(r.Body).Decode(&jws); err != nil {
			ca.t.Errorf("%s: %v", r.URL, err)
		}
	}
	n, _ := strconv.Atoi(arg)
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.serve(w, step, n, unbase64(jws.Protected), unbase64(jws.Payload))
}

func unbase64(s string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil
	}
	return b
}

// serve answers a request. The caller holds mu.
func (ca *fakeCA) serve(w http.ResponseWriter, step string, n int, protected, payload []byte) {
	var head struct {
		KID string
		JWK struct{ Crv, Kty, X, Y string }
	}
	_ = json.Unmarshal(protected, &head)
	account, _ := strconv.Atoi(path.Base(head.KID))
	if step != "dir" && step != "nonce" && step != "account" && ca.thumb(account) == "" {
		problem(w, http.StatusBadRequest, "accountDoesNotExist", "no such account")
		return
	}
	switch step {
	case "dir":
		answer(w, http.StatusOK, map[string]any{"newNonce": ca.url + "/nonce", "newAccount": ca.url + "/account", "newOrder": ca.url + "/order",
			"meta": map[string]any{"termsOfService": ca.url + "/terms", "profiles": map[string]string{"short": "brief"}}})
	case "nonce":
	case "account":
		ca.serveAccount(w, n, head.JWK.Crv, head.JWK.Kty, head.JWK.X, head.JWK.Y, payload)
	case "order":
		var req struct{ Identifiers []struct{ Value string } }
		_ = json.Unmarshal(payload, &req)
		ca.orders = append(ca.orders, &fakeOrder{name: req.Identifiers[0].Value, status: "pending", token: rand.Text(), thumb: ca.thumb(account), at: time.Now()})
		ca.answerOrder(w, http.StatusCreated, len(ca.orders)-1)
	case "poll":
		ca.answerOrder(w, http.StatusOK, n)
	case "authz":
		answer(w, http.StatusOK, ca.authz(n))
	case "challenge":
		o := ca.orders[n/10]
		o.typ = ca.offers[n%10]
		go ca.validate(o, ca.manager) // ends by itself: handshakes in memory, no waiting
		answer(w, http.StatusOK, ca.challenge(n/10, n%10))
	case "finalize":
		var req struct{ CSR string }
		_ = json.Unmarshal(payload, &req)
		csr, err := x509.ParseCertificateRequest(unbase64(req.CSR))
		if err != nil {
			ca.t.Error(err)
			return
		}
		chain := [][]byte{ca.signFor(ca.template(csr.DNSNames...), csr.PublicKey), ca.root.Raw}
		if ca.sign != nil {
			chain = ca.sign(csr)
		}
		for _, der := range chain {
			ca.orders[n].chain = append(ca.orders[n].chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		ca.orders[n].status = "valid"
		ca.answerOrder(w, http.StatusOK, n)
	case "cert":
		_, _ = w.Write(ca.orders[n].chain)
	default:
		http.Error(w, "no such thing", http.StatusNotFound)
	}
}

func (ca *fakeCA) serveAccount(w http.ResponseWriter, n int, crv, kty, x, y string, payload []byte) {
	var req struct{ Contact []string }
	_ = json.Unmarshal(payload, &req)
	code, found := http.StatusOK, n == 0
	if n == 0 {
		hash := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, crv, kty, x, y))
		thumb := base64.RawURLEncoding.EncodeToString(hash[:])
		if n = ca.accounts[thumb]; n == 0 {
			n, code = len(ca.accounts)+1, http.StatusCreated
			ca.accounts[thumb] = n
		}
	}
	if len(req.Contact) > 0 && (code == http.StatusCreated || !found) { // RFC 8555, section 7.3.1: an account that is found stays as it is
		ca.emails[n] = req.Contact[0]
	}
	w.Header().Set("Location", fmt.Sprintf("%s/account/%d", ca.url, n))
	answer(w, code, map[string]any{"status": "valid", "contact": req.Contact})
}

// thumb is the thumbprint of an account's key, "" if there is no such account.
func (ca *fakeCA) thumb(account int) string {
	for thumb, n := range ca.accounts {
		if n == account {
			return thumb
		}
	}
	return ""
}

func (ca *fakeCA) answerOrder(w http.ResponseWriter, code, n int) {
	o := ca.orders[n]
	w.Header().Set("Location", fmt.Sprintf("%s/poll/%d", ca.url, n))
	v := map[string]any{"status": o.status, "authorizations": []string{fmt.Sprintf("%s/authz/%d", ca.url, n)},
		"finalize": fmt.Sprintf("%s/finalize/%d", ca.url, n), "identifiers": []any{map[string]string{"type": "dns", "value": o.name}}}
	if o.status == "valid" {
		v["certificate"] = fmt.Sprintf("%s/cert/%d", ca.url, n)
	}
	answer(w, code, v)
}

func (ca *fakeCA) authz(n int) map[string]any {
	o := ca.orders[n]
	status := map[string]string{"ready": "valid", "valid": "valid", "pending": "pending", "invalid": "invalid"}[o.status]
	var list []any
	for i := range ca.offers {
		list = append(list, ca.challenge(n, i))
	}
	return map[string]any{"status": status, "identifier": map[string]string{"type": "dns", "value": o.name}, "challenges": list}
}

func (ca *fakeCA) challenge(n, i int) map[string]any {
	o := ca.orders[n]
	v := map[string]any{"type": ca.offers[i], "url": fmt.Sprintf("%s/challenge/%d", ca.url, n*10+i), "token": o.token, "status": "pending"}
	if o.problem != "" && o.typ == ca.offers[i] {
		v["status"], v["error"] = "invalid", map[string]any{"type": problemPrefix + "connection", "detail": o.problem, "status": 400}
	}
	return v
}

// validate looks for the answer to a challenge where the name leads.
func (ca *fakeCA) validate(o *fakeOrder, m *Manager) {
	found, err := "", error(nil)
	want := o.token + "." + o.thumb
	if o.typ == HTTP01 {
		r := httptest.NewRequest(http.MethodGet, "http://"+o.name+challengePath+o.token, nil)
		w := httptest.NewRecorder()
		m.HTTPHandler(nil).ServeHTTP(w, r)
		found = w.Body.String()
	} else {
		hash := sha256.Sum256([]byte(want))
		want = string(hash[:])
		found, err = alpnAnswer(m, o.name)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.tried = append(ca.tried, o.name+" "+o.typ)
	switch why := ca.broken[o.name]; {
	case why != "":
		o.status, o.problem = "invalid", why
	case err != nil:
		o.status, o.problem = "invalid", err.Error()
	case found != want:
		o.status, o.problem = "invalid", fmt.Sprintf("found %q, want %q", found, want)
	default:
		o.status = "ready"
	}
}

// alpnAnswer makes a handshake as RFC 8737, section 3 has a CA do, and returns the value of the extension.
func alpnAnswer(m *Manager, name string) (string, error) {
	near, far := memnet.Pipe(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.99:443"))
	defer near.Close()
	defer far.Close()
	server := tls.Server(far, &tls.Config{GetCertificate: m.GetCertificate, GetConfigForClient: m.GetConfigForClient, NextProtos: []string{"h2"}})
	var served sync.WaitGroup
	defer served.Wait()
	served.Go(func() { // ends with the handshake, or when far closes
		if err := server.Handshake(); err != nil {
			_ = far.Close()
		}
	})
	client := tls.Client(near, &tls.Config{ServerName: name, NextProtos: []string{ALPNProto}, InsecureSkipVerify: true})
	if err := client.Handshake(); err != nil {
		return "", err
	}
	state := client.ConnectionState()
	leaf := state.PeerCertificates[0]
	if state.NegotiatedProtocol != ALPNProto || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != name {
		return "", fmt.Errorf("negotiated %q with a certificate for %q", state.NegotiatedProtocol, leaf.DNSNames)
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}) && ext.Critical {
			var value []byte
			_, err := asn1.Unmarshal(ext.Value, &value)
			return string(value), err
		}
	}
	return "", fmt.Errorf("no acmeIdentifier in the certificate")
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func problem(w http.ResponseWriter, code int, typ, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": problemPrefix + typ, "detail": detail, "status": code})
}
