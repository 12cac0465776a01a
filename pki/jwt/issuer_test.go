package jwt

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// issuerAnswer is how the issuer of a test behaves.
type issuerAnswer struct {
	keys     string // the key set
	issuer   string // in the document of discovery, "" for the right one
	jwksURI  string // in the document of discovery, "" for the right one
	document string // the document itself, "" for a good one
	status   int    // of the key set, 0 for 200
	redirect string // where the key set's address leads
	control  string // Cache-Control of the key set
	token    string // that a request must have
	hang     bool   // never answers
	drip     bool   // sends a byte now and then, for ever
	packed   bool   // says that the answer is gzip
}

// issuerServer is an OpenID Connect issuer.
type issuerServer struct {
	*httptest.Server
	mu       sync.Mutex
	answer   issuerAnswer
	requests atomic.Int64 // all
	sets     atomic.Int64 // for the key set
	over     chan struct{}
	refused  chan error // what Env.Refreshed was told, failures only
}

func newIssuerServer(t testing.TB) *issuerServer {
	s := &issuerServer{over: make(chan struct{}), refused: make(chan error, 100), answer: issuerAnswer{keys: jwks(p256())}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(func() {
		close(s.over)
		s.Close()
	})
	return s
}

func (s *issuerServer) set(change func(*issuerAnswer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.answer)
}

func (s *issuerServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	s.mu.Lock()
	a := s.answer
	s.mu.Unlock()
	if a.token != "" && r.Header.Get("Authorization") != "Bearer "+a.token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if a.hang {
		<-s.over
		return
	}
	if r.URL.Path == discoveryPath {
		if a.issuer == "" {
			a.issuer = s.URL
		}
		if a.jwksURI == "" {
			a.jwksURI = s.URL + "/keys"
		}
		if a.document == "" {
			a.document = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q,"response_types_supported":["id_token"]}`, a.issuer, a.jwksURI)
		}
		io.WriteString(w, a.document)
		return
	}
	s.sets.Add(1)
	s.serveKeys(w, r, a)
}

func (s *issuerServer) serveKeys(w http.ResponseWriter, r *http.Request, a issuerAnswer) {
	switch {
	case a.redirect != "":
		http.Redirect(w, r, a.redirect, http.StatusFound)
		return
	case a.drip:
		for {
			select {
			case <-s.over:
				return
			case <-r.Context().Done():
				return
			case <-time.After(10 * time.Millisecond):
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
			}
		}
	}
	if a.control != "" {
		w.Header().Set("Cache-Control", a.control)
	}
	if a.packed {
		w.Header().Set("Content-Encoding", "gzip")
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	io.WriteString(w, a.keys)
}

// config finds the keys of s by discovery.
func (s *issuerServer) config() Config {
	return Config{Issuers: []IssuerConfig{{Issuer: s.URL, Audiences: []string{testAudience}, Discovery: true}}}
}

// direct names the address of the keys of s.
func (s *issuerServer) direct() Config {
	return Config{Issuers: []IssuerConfig{{Issuer: s.URL, Audiences: []string{testAudience}, JWKSURI: s.URL + "/keys"}}}
}

func (s *issuerServer) env() Env {
	return Env{Roots: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, Refreshed: func(_ string, err error) {
		if err != nil {
			select {
			case s.refused <- err:
			default:
			}
		}
	}}
}

func (s *issuerServer) claims() map[string]any { return goodClaims(map[string]any{"iss": s.URL}) }

// cool makes it as if the last refresh of all issuers was longer ago than the cooldown, and forgets missing kids.
func cool(v *Verifier) {
	for _, by := range v.issuers {
		by.source.mu.Lock()
		by.source.started = by.source.started.Add(-2 * cooldown)
		clear(by.source.missing)
		by.source.mu.Unlock()
	}
}

func TestIssuerByDiscoveryAndByAddress(t *testing.T) {
	for name, cfg := range map[string]func(*issuerServer) Config{"discovery": (*issuerServer).config, "address": (*issuerServer).direct} {
		t.Run(name, func(t *testing.T) {
			s := newIssuerServer(t)
			v := newVerifier(t, cfg(s), s.env())
			got := wantTaken(t, v, p256().token(t, s.claims()))
			if got.Issuer != s.URL || got.Subject != "alice" {
				t.Errorf("Verify = %+v", got)
			}
			if n := s.sets.Load(); n != 1 {
				t.Errorf("the key set was read %d times, want once", n)
			}
			stats := v.Stats().Issuers
			if len(stats) != 1 || stats[0].Keys != 1 || stats[0].Fetches != 1 || stats[0].Failures != 0 || time.Since(stats[0].At) > time.Minute {
				t.Errorf("Stats.Issuers = %+v", stats)
			}
		})
	}
}

func TestIssuerRotatesInTheMiddle(t *testing.T) {
	s := newIssuerServer(t)
	v := newVerifier(t, s.config(), s.env())
	oldKey, newKey := p256(), signer{"new", ecKey(elliptic256())}
	first := oldKey.token(t, s.claims())
	held := wantTaken(t, v, first)
	cool(v)
	// The new key signs before the old one goes: one refresh, however many ask.
	s.set(func(a *issuerAnswer) { a.keys = jwks(oldKey, newKey) })
	next := newKey.token(t, s.claims())
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := v.Verify(t.Context(), next); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := s.sets.Load(); n != 2 {
		t.Errorf("the key set was read %d times, want 2", n)
	}
	if !v.Valid(held) {
		t.Error("Valid = false while the old key is still there")
	}
	// The old one goes: what it signed is over, also what was remembered.
	cool(v)
	changed := v.Changed()
	s.set(func(a *issuerAnswer) { a.keys = jwks(newKey) })
	wantRefused(t, v, signer{"other", newKey.key}.token(t, s.claims()), UnknownKey)
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("Changed did not say that a key was withdrawn")
	}
	if v.Valid(held) {
		t.Error("Valid = true after the key was withdrawn")
	}
	wantRefused(t, v, first, UnknownKey)
	wantTaken(t, v, next)
}

func TestIssuerSameNameOtherKey(t *testing.T) {
	s := newIssuerServer(t)
	v := newVerifier(t, s.direct(), s.env())
	first := p256().token(t, s.claims())
	wantTaken(t, v, first)
	cool(v)
	s.set(func(a *issuerAnswer) { a.keys = jwks(signer{"p256", ecKey(elliptic256())}) })
	wantRefused(t, v, signer{"x", p256().key}.token(t, s.claims()), UnknownKey) // causes the refresh
	wantRefused(t, v, first, BadSignature)
}

// TestIssuerUnknownKidsCauseOneFetch has a sender that makes up kids.
func TestIssuerUnknownKidsCauseOneFetch(t *testing.T) {
	s := newIssuerServer(t)
	v := newVerifier(t, s.direct(), s.env())
	wantTaken(t, v, p256().token(t, s.claims()))
	cool(v)
	for i := range 300 {
		wantRefused(t, v, signer{fmt.Sprint("made up ", i), p256().key}.token(t, s.claims()), UnknownKey)
	}
	if n := s.sets.Load(); n != 2 {
		t.Errorf("the key set was read %d times, want 2: at the start, and for the first unknown kid", n)
	}
	if n := v.Stats().Verified; n != 1 {
		t.Errorf("%d signatures were checked, want 1", n)
	}
}

// TestIssuerThatHangsBlocksNobodyElse has tokens of an issuer that never answers beside those of one that does, and
// tokens of known keys beside those of unknown ones.
func TestIssuerThatHangsBlocksNobodyElse(t *testing.T) {
	hung, fine := newIssuerServer(t), newIssuerServer(t)
	hung.set(func(a *issuerAnswer) { a.hang = true })
	cfg := fine.direct()
	cfg.Issuers = append(cfg.Issuers, hung.direct().Issuers...)
	v := newVerifier(t, cfg, fine.env())
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	var sentAway atomic.Int64
	for i := range 3 * maxWaiting {
		waiting.Go(func() {
			_, err := v.Verify(ctx, signer{fmt.Sprint(i), p256().key}.token(t, hung.claims()))
			if err == nil {
				t.Error("a token without a key was taken")
			}
			if ctx.Err() == nil {
				sentAway.Add(1)
			}
		})
	}
	waitFor(t, "all but 256 are sent away", func() bool { return sentAway.Load() == 2*maxWaiting })
	if n := v.issuers[hung.URL].source.waiting.Load(); n != maxWaiting {
		t.Errorf("%d tokens wait, want %d", n, maxWaiting)
	}
	wantTaken(t, v, p256().token(t, fine.claims()))
	cool(v)
	fine.set(func(a *issuerAnswer) { a.hang = true })
	waiting.Go(func() {
		if _, err := v.Verify(ctx, signer{"x", p256().key}.token(t, fine.claims())); err == nil {
			t.Error("a token without a key was taken")
		}
	})
	waitFor(t, "the other issuer hangs, too", func() bool { return fine.sets.Load()+fine.requests.Load() >= 3 })
	wantTaken(t, v, p256().token(t, fine.claims()))
	cancel()
	waiting.Wait()
	if n := hung.requests.Load(); n > 1 {
		t.Errorf("the issuer that hangs got %d requests, want one", n)
	}
}

func TestIssuerFaults(t *testing.T) {
	ten := make([]any, 0, 10_000)
	for i := range 10_000 {
		ten = append(ten, map[string]any{"kty": "oct", "kid": i})
	}
	many := make([]signer, 0, maxSetKeys+1)
	for i := range maxSetKeys + 1 {
		many = append(many, signer{fmt.Sprint(i), p256().key})
	}
	var otherAsked atomic.Int64
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { otherAsked.Add(1) }))
	defer other.Close()
	for _, tc := range []struct {
		name   string
		change func(*issuerAnswer)
		want   string
	}{
		{"another issuer", func(a *issuerAnswer) { a.issuer = "https://evil.example" }, "another issuer"},
		{"issuer with a slash", func(a *issuerAnswer) { a.document = `{"issuer":"URL/","jwks_uri":"URL/keys"}` }, "another issuer"},
		{"issuer missing", func(a *issuerAnswer) { a.document = `{"jwks_uri":"URL/keys"}` }, "another issuer"},
		{"issuer twice", func(a *issuerAnswer) { a.document = `{"issuer":"x","issuer":"URL","jwks_uri":"URL/keys"}` }, "twice"},
		{"keys on another host", func(a *issuerAnswer) { a.jwksURI = other.URL + "/keys" }, "name it in hosts"},
		{"keys on an address of metadata", func(a *issuerAnswer) { a.jwksURI = "https://169.254.169.254/keys" }, "name it in hosts"},
		{"keys over http", func(a *issuerAnswer) { a.jwksURI = "http://127.0.0.1/keys" }, "not https"},
		{"keys in a file", func(a *issuerAnswer) { a.jwksURI = "file:///etc/passwd" }, "no address"},
		{"keys at a host with a user", func(a *issuerAnswer) { a.jwksURI = "https://a:b@127.0.0.1/keys" }, "no address"},
		{"jwks_uri is a number", func(a *issuerAnswer) { a.document = `{"issuer":"URL","jwks_uri":1}` }, "address"},
		{"document is no JSON", func(a *issuerAnswer) { a.document = "<html>" }, "not JSON"},
		{"document is huge", func(a *issuerAnswer) { a.document = strings.Repeat(" ", 1<<20) }, "bigger than"},
		{"sent on to another host", func(a *issuerAnswer) { a.redirect = other.URL }, "another host"},
		{"sent on to http", func(a *issuerAnswer) { a.redirect = "http://127.0.0.1/keys" }, "another host"},
		{"sent on for ever", func(a *issuerAnswer) { a.redirect = "/again" }, "too often"},
		{"not found", func(a *issuerAnswer) { a.status = 404 }, "status 404"},
		{"no content", func(a *issuerAnswer) { a.status = 204 }, "status 204"},
		{"keys are huge", func(a *issuerAnswer) { a.keys = strings.Repeat(" ", maxSetBytes) + jwks(p256()) }, "bigger than"},
		{"10,000 keys", func(a *issuerAnswer) { a.keys = jwksOf(ten...) }, "bigger than"},
		{"a key too many", func(a *issuerAnswer) { a.keys = jwks(many...) }, "33 keys"},
		{"no keys", func(a *issuerAnswer) { a.keys = `{"keys":[]}` }, "0 keys"},
		{"keys twice", func(a *issuerAnswer) { a.keys = `{"keys":[],"keys":[]}` }, "twice"},
		{"no list", func(a *issuerAnswer) { a.keys = `{"keys":{}}` }, "no list"},
		{"packed", func(a *issuerAnswer) { a.keys, a.packed = "\x1f\x8b\x08\x00", true }, "UTF-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newIssuerServer(t)
			s.set(tc.change)
			s.set(func(a *issuerAnswer) { a.document = strings.ReplaceAll(a.document, "URL", s.URL) })
			v := newVerifier(t, s.config(), s.env())
			wantRefused(t, v, p256().token(t, s.claims()), KeysUnavailable)
			if err := <-s.refused; !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Refreshed got %v, want something with %q", err, tc.want)
			}
			// It comes back.
			cool(v)
			s.set(func(a *issuerAnswer) { *a = issuerAnswer{keys: jwks(p256())} })
			wantTaken(t, v, p256().token(t, s.claims()))
		})
	}
	if n := otherAsked.Load(); n != 0 {
		t.Errorf("another host was asked %d times", n)
	}
}

func TestIssuerUntrustedCertificate(t *testing.T) {
	s := newIssuerServer(t)
	env := s.env()
	env.Roots = nil
	v := newVerifier(t, s.config(), env)
	wantRefused(t, v, p256().token(t, s.claims()), KeysUnavailable)
	if err := <-s.refused; !errorsAsCertificate(err) {
		t.Errorf("Refreshed got %v, want a *tls.CertificateVerificationError", err)
	}
}

func errorsAsCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// TestIssuerThatDrips has an answer that comes byte by byte and never ends: five seconds are all it gets.
func TestIssuerThatDrips(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	s := newIssuerServer(t)
	s.set(func(a *issuerAnswer) { a.drip = true })
	v := newVerifier(t, s.direct(), s.env())
	wantRefused(t, v, p256().token(t, s.claims()), KeysUnavailable)
	if err := <-s.refused; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Refreshed got %v, want the end of its time", err)
	}
}

// TestIssuerWithFiles is the API server of Kubernetes: a CA of its own, and a token to be let in.
func TestIssuerWithFiles(t *testing.T) {
	s := newIssuerServer(t)
	s.set(func(a *issuerAnswer) { a.token = "let-me-in" })
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	env := s.env()
	env.Roots = nil
	cfg := s.config()
	cfg.Issuers[0].CAFile, cfg.Issuers[0].TokenFile = writeFile(t, "ca.pem", ca), writeFile(t, "token", "let-me-in\n")
	v := newVerifier(t, cfg, env)
	wantTaken(t, v, p256().token(t, s.claims()))
}

func TestIssuerNeverFollowsWhatATokenNames(t *testing.T) {
	s := newIssuerServer(t)
	v := newVerifier(t, config(jwks(p256())), s.env())
	stranger := signer{"mine", ecKey(elliptic256())}
	for _, name := range []string{"jku", "x5u"} {
		payload := goodPayload(t)
		wantRefused(t, v, stranger.raw(t, "ES256", `{"alg":"ES256","kid":"mine","`+name+`":"`+s.URL+`/keys"}`, payload), UnknownKey)
		wantTaken(t, v, p256().raw(t, "ES256", `{"alg":"ES256","kid":"p256","`+name+`":"`+s.URL+`/keys"}`, payload))
	}
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests were made for what a token names", n)
	}
}

func TestVerifierAfterClose(t *testing.T) {
	s := newIssuerServer(t)
	v := newVerifier(t, s.direct(), s.env())
	wantTaken(t, v, p256().token(t, s.claims()))
	v.Close()
	v.Close()
	cool(v)
	wantTaken(t, v, p256().token(t, goodClaims(map[string]any{"iss": s.URL, "sub": "bob"})))
	// Nobody will read keys for it any more, so it does not wait for them.
	_, err := v.Verify(context.Background(), signer{"x", p256().key}.token(t, s.claims()))
	if e, ok := errors.AsType[*Error](err); !ok || e.Reason != KeysUnavailable {
		t.Errorf("Verify = %v, want %s", err, KeysUnavailable)
	}
}
