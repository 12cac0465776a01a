package acme

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// atStep makes a hook that answers requests of one step.
func atStep(want string, answer func(w http.ResponseWriter)) func(http.ResponseWriter, string, string) bool {
	return func(w http.ResponseWriter, step, _ string) bool {
		if step == want {
			answer(w)
		}
		return step == want
	}
}

// endless is a body that goes on until the other side has enough.
func endless(prefix string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		_, _ = io.WriteString(w, prefix)
		for more := bytes.Repeat([]byte(" "), 1<<15); ; {
			if _, err := w.Write(more); err != nil {
				return
			}
		}
	}
}

func says(v any) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { answer(w, http.StatusOK, v) }
}

func saysWithoutNonce(v any) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Del("Replay-Nonce")
		answer(w, http.StatusOK, v)
	}
}

func redirects(code int, to string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Location", to)
		w.WriteHeader(code)
	}
}

// orderWith is an order whose URLs are of the CA's choice.
func orderWith(code int, status, authz, finalize, cert string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Location", "https://ca.test/poll/0")
		answer(w, code, map[string]any{"status": status, "authorizations": []string{authz}, "finalize": finalize, "certificate": cert})
	}
}

func authzWith(name, token string, types ...string) func(http.ResponseWriter) {
	var list []any
	for _, typ := range types {
		list = append(list, map[string]string{"type": typ, "url": "https://ca.test/challenge/0", "token": token, "status": "pending"})
	}
	return says(map[string]any{"status": "pending", "identifier": map[string]string{"type": "dns", "value": name}, "challenges": list})
}

const goodToken = "0123456789abcdefghijklmnop"

// TestHostileCA has a CA that does what none should. The order fails, says why, takes a bounded number of requests and
// a bounded time, and leaves nothing behind.
func TestHostileCA(t *testing.T) {
	for _, tc := range []struct {
		name string
		hook func(http.ResponseWriter, string, string) bool
		step Step
		says string
		most int // requests
	}{
		{"directory without end", atStep("dir", endless("{")), StepAccount, "longer than 131072 bytes", 1},
		{"directory that is deep", atStep("dir", endless(strings.Repeat("[", 100_000))), StepAccount, "exceeded max depth", 1},
		{"directory that is a page", atStep("dir", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") }), StepAccount, "invalid character", 1},
		{"directory of another age", atStep("dir", says(map[string]string{"new-reg": "x"})), StepAccount, "RFC 8555", 1},
		{"directory elsewhere", atStep("dir", redirects(302, "http://169.254.169.254/latest/meta-data")), StepAccount, "redirects to \"http://169.254.169.254", 1},
		{"account elsewhere", atStep("account", redirects(307, "https://other.test/account")), StepAccount, "redirects", 4},
		{"redirect to nowhere", atStep("order", redirects(303, "")), StepOrder, "303", 10},
		{"nonce of another host", atStep("dir", saysWithoutNonce(map[string]string{"newNonce": "https://other.test/n", "newAccount": "https://ca.test/account", "newOrder": "https://ca.test/order"})), StepAccount, "not on its own", 2},
		{"nonces that are never good", atStep("order", func(w http.ResponseWriter) { problem(w, 400, "badNonce", "not that one") }), StepOrder, "badNonce", 80},
		{"no nonces", func(w http.ResponseWriter, step, _ string) bool { w.Header().Del("Replay-Nonce"); return false }, StepAccount, "nonce not found", 3},
		{"account without URL", atStep("account", says(map[string]string{"status": "valid"})), StepAccount, "no URL for the account", 5},
		{"account URL without end", atStep("account", func(w http.ResponseWriter) {
			w.Header().Set("Location", "https://ca.test/"+strings.Repeat("a", 10_000))
			answer(w, http.StatusCreated, map[string]string{"status": "valid"})
		}), StepAccount, "no URL for the account", 5},
		{"header without end", atStep("order", func(w http.ResponseWriter) { w.Header().Set("X", strings.Repeat("a", 1<<20)) }), StepOrder, "", 10},
		{"server errors", atStep("order", func(w http.ResponseWriter) { problem(w, 500, "serverInternal", "sorry") }), StepOrder, "sorry", 10},
		{"problem without end", atStep("order", func(w http.ResponseWriter) { w.WriteHeader(403); endless(`{"detail": "no`)(w) }), StepOrder, "detail", 10},
		{"problem with control characters", atStep("order", func(w http.ResponseWriter) { problem(w, 403, "x\ny", "a\x1b[31m\nlevel=ERROR b") }), StepOrder, "a [31m level=ERROR b (x y)", 10},
		{"order without URL", atStep("order", func(w http.ResponseWriter) { answer(w, 201, map[string]string{"status": "pending"}) }), StepOrder, "no URL for the order", 10},
		{"many authorizations", atStep("order", func(w http.ResponseWriter) {
			w.Header().Set("Location", "https://ca.test/poll/0")
			answer(w, 201, map[string]any{"status": "pending", "authorizations": make([]string, 1000)})
		}), StepOrder, "1000 authorizations", 10},
		{"order of text without end", atStep("order", func(w http.ResponseWriter) { w.WriteHeader(201); endless(`{"status": "`)(w) }), StepOrder, "longer than", 10},
		{"authorization of the metadata service", atStep("order", orderWith(201, "pending", "http://169.254.169.254/a", "", "")), StepChallenge, "not on its own", 10},
		{"authorization at another port", atStep("order", orderWith(201, "pending", "https://ca.test:8443/a", "", "")), StepChallenge, "not on its own", 10},
		{"authorization at no URL", atStep("order", orderWith(201, "pending", "", "", "")), StepChallenge, "not on its own", 10},
		{"authorization of another name", atStep("authz", authzWith("bank.example", goodToken, HTTP01)), StepChallenge, "another name, \"bank.example\"", 10},
		{"authorization of an address", atStep("authz", says(map[string]any{"status": "pending", "identifier": map[string]string{"type": "ip", "value": alpha}})), StepChallenge, "another name", 10},
		{"authorization that failed before", atStep("authz", says(map[string]any{"status": "invalid", "identifier": map[string]string{"type": "dns", "value": alpha}})), StepChallenge, "before anything was asked", 10},
		{"no challenge that we can answer", atStep("authz", authzWith(alpha, goodToken, "dns-01", "tls-sni-01")), StepChallenge, `["dns-01" "tls-sni-01"] and not tls-alpn-01 or http-01`, 10},
		{"token that is a path", atStep("authz", authzWith(alpha, "../../../../etc/passwd-and-more", HTTP01)), StepChallenge, "base64url", 10},
		{"token that is empty", atStep("authz", authzWith(alpha, "", HTTP01)), StepChallenge, "base64url", 10},
		{"token that is long", atStep("authz", authzWith(alpha, strings.Repeat("a", 100_000), TLSALPN01)), StepChallenge, "base64url", 10},
		{"challenge at another host", atStep("authz", says(map[string]any{"status": "pending", "identifier": map[string]string{"type": "dns", "value": alpha},
			"challenges": []any{map[string]string{"type": HTTP01, "url": "https://other.test/c", "token": goodToken}}})), StepChallenge, "not on its own", 10},
		{"authorization that is pending for ever", atStep("challenge", says(map[string]string{"type": TLSALPN01})), StepChallenge, "took too long", 310},
		{"authorization of a kind that is not known", onceThen("authz", says(map[string]any{"status": "thinking", "identifier": map[string]string{"type": "dns", "value": alpha}})), StepChallenge, "took too long", 310},
		{"asks for no pause", func(w http.ResponseWriter, step, _ string) bool {
			w.Header().Set("Retry-After", "-1")
			return atStep("challenge", says(map[string]string{"type": TLSALPN01}))(w, step, "")
		}, StepChallenge, "took too long", 310},
		{"asks for a long pause", func(w http.ResponseWriter, step, _ string) bool {
			w.Header().Set("Retry-After", "99999999999")
			return atStep("challenge", says(map[string]string{"type": TLSALPN01}))(w, step, "")
		}, StepChallenge, "took too long", 310},
		{"order that is pending for ever", atStep("poll", orderWith(200, "pending", "https://ca.test/authz/0", "", "")), StepCertificate, "took too long", 310},
		{"order that is valid before a key was sent", atStep("poll", orderWith(200, "valid", "https://ca.test/authz/0", "", "https://ca.test/cert/0")), StepCertificate, "before a key", 15},
		{"order that failed", atStep("poll", says(map[string]any{"status": "invalid", "error": map[string]any{"type": problemPrefix + "caa", "detail": "CAA says no"}})), StepCertificate, "let a CAA record", 15},
		{"order without a place for the key", atStep("poll", orderWith(200, "ready", "https://ca.test/authz/0", "", "")), StepCertificate, "finalize URL is empty", 15},
		{"key to another host", atStep("poll", orderWith(200, "ready", "https://ca.test/authz/0", "https://other.test/f", "")), StepCertificate, "not on its own", 15},
		{"certificate at another host", atStep("finalize", orderWith(200, "valid", "", "", "https://other.test/c")), StepCertificate, "not on its own", 15},
		{"certificate without end", atStep("cert", endless("-----BEGIN CERTIFICATE-----\n")), StepCertificate, "longer than", 15},
		{"certificate that is none", atStep("cert", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "never mind") }), StepCertificate, "chain is empty", 15},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.ca.set(func() { w.ca.hook = tc.hook })
				w.cfg.OrdersPerHour = 1
				m := w.open()
				defer m.Close()
				start := time.Now()
				for status(t, m, alpha).LastError == nil && time.Since(start) < time.Hour {
					sleep(time.Second)
				}
				if took := time.Since(start); took > defaultTiming().orderLimit+2*time.Second {
					t.Errorf("the order took %v, want at most %v", took, defaultTiming().orderLimit)
				}
				fault := wantFault(t, m, alpha, tc.step, tc.says)
				if text := fault.Error(); len(text) > 1024 || strings.ContainsAny(text, "\n\x1b") {
					t.Errorf("the error is %d bytes of %q, want one short line", len(text), text)
				}
				if n := w.ca.total(); n > tc.most {
					t.Errorf("%d requests, want at most %d", n, tc.most)
				}
				wantNoCert(t, m, alpha, NotIssued)
				if n := len(m.answers.http) + len(m.answers.alpn); n != 0 {
					t.Errorf("%d answers to challenges are left", n)
				}
				// When the CA is well again, so is the name.
				w.ca.set(func() { w.ca.hook = nil })
				sleep(2 * time.Hour)
				mustCert(t, m, alpha)
			})
		})
	}
}

// onceThen makes a hook that lets the first request of a step pass to the CA.
func onceThen(want string, answer func(http.ResponseWriter)) func(http.ResponseWriter, string, string) bool {
	seen := 0
	return func(w http.ResponseWriter, step, _ string) bool {
		if step != want {
			return false
		}
		if seen++; seen > 1 {
			answer(w)
		}
		return seen > 1
	}
}

// TestHostileCertificates has a CA that sends certificates which must not be used.
func TestHostileCertificates(t *testing.T) {
	other := newKey(t)
	for _, tc := range []struct {
		name string
		sign func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte
		says string
	}{
		{"another name", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			return [][]byte{ca.signFor(ca.template(beta), csr.PublicKey), ca.root.Raw}
		}, "not for the name"},
		{"no name", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			return [][]byte{ca.signFor(ca.template(), csr.PublicKey), ca.root.Raw}
		}, "not for the name"},
		{"another key", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			return [][]byte{ca.signFor(ca.template(alpha), other.Public()), ca.root.Raw}
		}, "another key"},
		{"another kind of key", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			pub, _, _ := ed25519.GenerateKey(rand.Reader)
			return [][]byte{ca.signFor(ca.template(alpha), pub), ca.root.Raw}
		}, "another key"},
		{"expired", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			c := ca.template(alpha)
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Second)
			return [][]byte{ca.signFor(c, csr.PublicKey), ca.root.Raw}
		}, "expired at"},
		{"of tomorrow", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			c := ca.template(alpha)
			c.NotBefore = time.Now().Add(day)
			return [][]byte{ca.signFor(c, csr.PublicKey), ca.root.Raw}
		}, "clocks"},
		{"a CA", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			c := ca.template(alpha)
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
			return [][]byte{ca.signFor(c, csr.PublicKey), ca.root.Raw}
		}, "is a CA's"},
		{"for clients", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			c := ca.template(alpha)
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			return [][]byte{ca.signFor(c, csr.PublicKey), ca.root.Raw}
		}, "servers"},
		{"chain of 20", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			chain := [][]byte{ca.signFor(ca.template(alpha), csr.PublicKey)}
			for range 19 {
				chain = append(chain, ca.root.Raw)
			}
			return chain
		}, "too long"},
		{"chain of 6", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			chain := [][]byte{ca.signFor(ca.template(alpha), csr.PublicKey)}
			for range 5 {
				chain = append(chain, ca.root.Raw)
			}
			return chain
		}, "long"},
		{"chain that does not hang together", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			stranger := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
				KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
			der, err := x509.CreateCertificate(rand.Reader, stranger, stranger, other.Public(), other)
			if err != nil {
				ca.t.Error(err)
			}
			return [][]byte{ca.signFor(ca.template(alpha), csr.PublicKey), der}
		}, "does not sign"},
		{"leaf twice", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			der := ca.signFor(ca.template(alpha), csr.PublicKey)
			return [][]byte{der, der}
		}, "does not sign"},
		{"expired CA", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte {
			old := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "old"}, IsCA: true, BasicConstraintsValid: true,
				KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
			mid := ca.make(old, ca.root, other)
			leaf, err := x509.CreateCertificate(rand.Reader, ca.template(alpha), mid, csr.PublicKey, other)
			if err != nil {
				ca.t.Error(err)
			}
			return [][]byte{leaf, mid.Raw, ca.root.Raw}
		}, "certificate 2 of 3 expired"},
		{"garbage", func(ca *fakeCA, csr *x509.CertificateRequest) [][]byte { return [][]byte{{0x30, 0x82, 1, 2, 3}} }, "malformed"},
		{"none", func(*fakeCA, *x509.CertificateRequest) [][]byte { return nil }, "empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.ca.life = 12 * time.Hour
				m := w.open()
				defer m.Close()
				sleep(10 * time.Second)
				first := mustCert(t, m, alpha)
				w.ca.set(func() { w.ca.sign = func(csr *x509.CertificateRequest) [][]byte { return tc.sign(w.ca, csr) } })
				sleep(time.Until(status(t, m, alpha).NextTry) + 20*time.Second)
				wantFault(t, m, alpha, StepCertificate, tc.says)
				if !mustCert(t, m, alpha).Equal(first) {
					t.Error("the certificate in use was replaced")
				}
				if kept, err := w.store().readCert(alpha); err != nil || !kept.cert.Leaf.Equal(first) {
					t.Errorf("the kept certificate was replaced, or %v", err)
				}
			})
		})
	}
}

func TestOrderThatIsAtWorkForEver(t *testing.T) {
	inWorld(t, func(w *world) {
		finalized := false
		w.ca.hook = func(rw http.ResponseWriter, step, _ string) bool {
			if step == "finalize" {
				finalized = true
			}
			if !finalized || step != "finalize" && step != "poll" {
				return false
			}
			orderWith(200, "processing", "", "", "")(rw)
			return true
		}
		m := w.open()
		defer m.Close()
		sleep(defaultTiming().orderLimit + 2*time.Second)
		wantFault(t, m, alpha, StepCertificate, "took too long")
		if n := w.ca.total(); n > 310 {
			t.Errorf("%d requests, want at most one a second", n)
		}
	})
}

// A CA that begins an answer and never ends it holds an order for the time of a request, and Close not at all.
func TestAnswerThatNeverEnds(t *testing.T) {
	inWorld(t, func(w *world) {
		stop := make(chan struct{})
		defer close(stop)
		w.ca.hook = atStep("order", func(rw http.ResponseWriter) {
			rw.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(rw, `{"status":`)
			_ = http.NewResponseController(rw).Flush()
			<-stop
		})
		m := w.open()
		sleep(requestTimeout + time.Second)
		wantFault(t, m, alpha, StepOrder)
		sleep(5 * time.Minute) // the next one is under way, or will be
		start := time.Now()
		m.Close()
		if took := time.Since(start); took > 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

func TestCloseEndsAnOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.hook = atStep("challenge", says(map[string]string{"type": TLSALPN01}))
		m := w.open()
		sleep(30 * time.Second)
		if len(m.answers.alpn) != 1 {
			t.Fatal("no order is under way")
		}
		start := time.Now()
		m.Close()
		m.Close()
		if took := time.Since(start); took > 0 {
			t.Errorf("Close took %v", took)
		}
		if n := w.logs.count("level=ERROR") + w.logs.count("level=WARN"); n != 0 {
			t.Errorf("log %s, want no complaint of an order that Close has ended", w.logs)
		}
		wantNoCert(t, m, alpha, NotIssued)
	})
}

// A CA whose certificates are over almost at once does not make us order without end.
func TestCertificatesOfASecond(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.life = 2 * time.Second
		m := w.open()
		defer m.Close()
		sleep(3 * time.Hour)
		if n := len(w.ca.ordered(alpha)); n < 3 || n > 4*defaultOrdersPerHour {
			t.Errorf("%d orders in three hours, want at most %d an hour", n, defaultOrdersPerHour)
		}
	})
}

// What a hostile CA can make us hold: its answers are read up to a bound.
func TestHostileAnswersMemory(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.OrdersPerHour = maxOrdersPerHour
		w.ca.hook = atStep("order", func(rw http.ResponseWriter) { rw.WriteHeader(201); endless(`{"status": "`)(rw) })
		m := w.open()
		defer m.Close()
		var before, after runtime.MemStats
		sleep(time.Minute)
		runtime.GC()
		runtime.ReadMemStats(&before)
		sleep(10 * time.Hour)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
			t.Errorf("%d bytes more are held after ten hours of endless answers", grown)
		}
		if n := w.ca.count("order"); n < 10 {
			t.Errorf("%d orders were tried, want more", n)
		}
	})
}

// A name that hangs at the CA holds one of the places for orders, not all of them.
func TestNameThatHangsDoesNotHoldOthers(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.Names = []string{"hangs.example", alpha, beta}
		w.ca.hook = func(rw http.ResponseWriter, step, arg string) bool {
			if step != "challenge" {
				return false
			}
			var n int
			if err := json.Unmarshal([]byte(arg), &n); err != nil {
				t.Error(err)
			}
			w.ca.mu.Lock()
			hangs := w.ca.orders[n/10].name == "hangs.example"
			w.ca.mu.Unlock()
			if hangs {
				says(map[string]string{"type": TLSALPN01})(rw)
			}
			return hangs
		}
		m := w.open()
		defer m.Close()
		sleep(10 * time.Second)
		mustCert(t, m, alpha)
		mustCert(t, m, beta)
		if !status(t, m, "hangs.example").NextTry.IsZero() {
			t.Error("the name that hangs is not under way")
		}
	})
}

// However many names there are, only so many are at work.
func TestOrdersAtOnceAreBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 3 * maxAtWork {
			w.cfg.Names = append(w.cfg.Names, fmt.Sprintf("n%d.example", i))
		}
		w.ca.hook = atStep("challenge", says(map[string]string{"type": TLSALPN01}))
		m := w.open()
		defer m.Close()
		most := 0
		for range 10 * 60 {
			sleep(time.Second)
			m.answers.mu.Lock()
			most = max(most, len(m.answers.alpn))
			m.answers.mu.Unlock()
		}
		if most != maxAtWork {
			t.Errorf("%d orders at once, want %d", most, maxAtWork)
		}
	})
}
