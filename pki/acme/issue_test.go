package acme

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	xacme "golang.org/x/crypto/acme"
)

const day = 24 * time.Hour

func TestIssueByEachChallenge(t *testing.T) {
	for _, typ := range []string{HTTP01, TLSALPN01} {
		t.Run(typ, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.cfg.Names = []string{"Alpha.Example", beta}
				w.cfg.Challenges = []string{typ}
				w.cfg.Email = "ops@example.com"
				m := w.open()
				defer m.Close()
				wantNoCert(t, m, beta, NotIssued)
				changed := m.Changed()
				sleep(idleTimeout / 2)
				<-changed
				a, b := mustCert(t, m, "ALPHA.example"), mustCert(t, m, beta)
				if pubA, pubB := fmt.Sprint(a.PublicKey), fmt.Sprint(b.PublicKey); pubA == pubB {
					t.Error("two names share a key")
				}
				if want := []string{alpha + " " + typ, beta + " " + typ}; len(w.ca.tried) != 2 || !slices.Contains(w.ca.tried, want[0]) || !slices.Contains(w.ca.tried, want[1]) {
					t.Errorf("validations %q, want %q", w.ca.tried, want)
				}
				if len(w.ca.accounts) != 1 || w.ca.emails[1] != "mailto:ops@example.com" {
					t.Errorf("%d accounts with contacts %v, want one with the address", len(w.ca.accounts), w.ca.emails)
				}
				s := status(t, m, alpha)
				if !s.NotAfter.Equal(a.NotAfter) || !s.NotBefore.Equal(a.NotBefore) || s.LastError != nil || s.Issued != 1 || s.Failed != 0 || s.NextTry.IsZero() {
					t.Errorf("Status = %+v, want that of the certificate", s)
				}
				if n := len(m.answers.http) + len(m.answers.alpn); n != 0 {
					t.Errorf("%d answers to challenges are left after all is done", n)
				}
				checkModes(t, w.store())
				if text := w.logs.String(); strings.Contains(text, "PRIVATE KEY") || w.logs.count("certificate issued") != 2 || w.logs.count(w.ca.url+"/terms") != 1 {
					t.Errorf("log %s, want two certificates and the terms once", text)
				}
				m.Close()
				synctest.Wait()
				if n := len(w.net.Open()); n != 0 {
					t.Errorf("%d connections are open after Close", n)
				}
			})
		})
	}
}

func TestProfileIsAskedFor(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.Profile = "long"
		m := w.open()
		sleep(10 * time.Second)
		wantFault(t, m, alpha, StepOrder, "long", "short")
		m.Close()
		w.cfg.Profile = "short"
		m = w.open()
		defer m.Close()
		sleep(10 * time.Second)
		mustCert(t, m, alpha)
	})
}

func TestRenewal(t *testing.T) {
	for _, tc := range []struct {
		name               string
		before             time.Duration
		earliest, soonerBy time.Duration // when it is renewed, counted from its beginning; at most so much sooner
	}{
		{"two thirds of its life", 0, 60 * day, 90 * day / spreadPart},
		{"as configured", 10 * day, 80 * day, 90 * day / spreadPart},
		{"not more than half its life", 89 * day, 45 * day, 90 * day / spreadPart},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.cfg.RenewBefore = tc.before
				m := w.open()
				defer m.Close()
				sleep(10 * time.Second)
				first := mustCert(t, m, alpha)
				changed := m.Changed()
				<-changed
				sleep(time.Minute)
				at, second := time.Since(first.NotBefore), mustCert(t, m, alpha)
				if second.Equal(first) || fmt.Sprint(second.PublicKey) == fmt.Sprint(first.PublicKey) {
					t.Error("the renewed certificate is the old one, or has its key")
				}
				if at > tc.earliest+2*maxNap || at < tc.earliest-tc.soonerBy-maxNap {
					t.Errorf("renewed after %v, want %v or up to %v sooner", at, tc.earliest, tc.soonerBy)
				}
				if orders := w.ca.ordered(alpha); len(orders) != 2 {
					t.Errorf("%d orders, want 2", len(orders))
				}
			})
		})
	}
}

func TestRestartUsesWhatIsKept(t *testing.T) {
	inWorld(t, func(w *world) {
		m := w.open()
		sleep(10 * time.Second)
		first := mustCert(t, m, alpha)
		m.Close()
		if again := mustCert(t, m, alpha); !again.Equal(first) {
			t.Error("after Close, GetCertificate returns another certificate")
		}
		before := w.ca.total()
		writeTestFile(t, filepath.Join(w.store().dir, ".new-123"), []byte("of a crash"))
		for range 3 {
			m = w.open()
			if kept := mustCert(t, m, alpha); !kept.Equal(first) { // at once
				t.Error("after a restart, GetCertificate returns another certificate")
			}
			sleep(time.Hour)
			m.Close()
		}
		if n := w.ca.total(); n != before {
			t.Errorf("three restarts made %d requests, want none", n-before)
		}
		checkModes(t, w.store())
		// The account is kept, too: a new name needs no new one.
		accounts := w.ca.count("account")
		w.cfg.Names = append(w.cfg.Names, beta)
		m = w.open()
		defer m.Close()
		sleep(10 * time.Second)
		mustCert(t, m, beta)
		if n := w.ca.count("account"); n != accounts {
			t.Errorf("a new name made %d requests for an account, want none", n-accounts)
		}
	})
}

func TestAnotherDirectoryHasItsOwnFolder(t *testing.T) {
	inWorld(t, func(w *world) {
		m := w.open()
		sleep(10 * time.Second)
		mustCert(t, m, alpha)
		m.Close()
		w.cfg.Directory = w.ca.url + "/dir/" // as staging and production at one host
		m = w.open()
		defer m.Close()
		wantNoCert(t, m, alpha, NotIssued)
		sleep(10 * time.Second)
		mustCert(t, m, alpha)
		if len(w.ca.accounts) != 2 {
			t.Errorf("%d accounts, want one for each directory", len(w.ca.accounts))
		}
	})
}

func TestFailingNameDoesNotHinderOthers(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.Names = nil
		for i := range 2 * maxAtWork {
			bad := fmt.Sprintf("bad%d.example", i)
			w.cfg.Names = append(w.cfg.Names, bad)
			w.ca.broken[bad] = "nothing listens at 192.0.2.7"
		}
		w.cfg.Names = append(w.cfg.Names, alpha)
		w.cfg.OrdersPerHour = 100
		m := w.open()
		defer m.Close()
		sleep(20 * time.Second)
		mustCert(t, m, alpha)
		fault := wantFault(t, m, "bad0.example", StepChallenge, "bad0.example", "nothing listens at 192.0.2.7", "connection", "port 80", TLSALPN01)
		if fault.Type != "connection" {
			t.Errorf("Type = %q, want connection", fault.Type)
		}
		wantNoCert(t, m, "bad0.example", NotIssued)
		if _, err := certFor(m, "bad0.example"); !strings.Contains(err.Error(), "nothing listens") {
			t.Errorf("GetCertificate = %v, want it to say why there is none", err)
		}
		sleep(10 * time.Hour)
		times := w.ca.ordered("bad0.example")
		for i := 1; i < len(times); i++ {
			want := min(time.Minute<<(i-1), noneRetry)
			if gap := times[i].Sub(times[i-1]); gap < want || gap > want*6/5+maxNap {
				t.Errorf("try %d comes %v after the one before, want %v and up to a fifth more", i+1, gap, want)
			}
		}
		if len(times) < 10 {
			t.Errorf("%d tries in ten hours, want them to go on", len(times))
		}
		var types []string
		for _, tried := range w.ca.tried {
			if typ, ok := strings.CutPrefix(tried, "bad0.example "); ok {
				types = append(types, typ)
			}
		}
		if want := []string{TLSALPN01, HTTP01, TLSALPN01}; !slices.Equal(types[:3], want) {
			t.Errorf("the first tries are by %q, want %q", types[:3], want)
		}
		w.ca.set(func() { clear(w.ca.broken) })
		sleep(3 * time.Hour)
		mustCert(t, m, "bad0.example")
		if s := status(t, m, "bad0.example"); s.LastError != nil || s.Issued != 1 || int(s.Failed) != len(w.ca.ordered("bad0.example"))-1 {
			t.Errorf("Status = %+v after a success, want no error and every order counted", s)
		}
	})
}

func TestOrdersAreBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.broken[alpha] = "nothing listens"
		w.cfg.OrdersPerHour = 3
		start := time.Now()
		// A gateway that crashes and is started anew each minute, for five hours.
		for time.Since(start) < 5*time.Hour {
			m := w.open()
			sleep(time.Minute)
			if time.Since(start) < 30*time.Minute && time.Since(start) > 10*time.Minute {
				fault := wantFault(t, m, alpha, StepRate, "3 orders")
				if s := status(t, m, alpha); fault.RetryAfter <= 0 || s.NextTry.Sub(start) < rateWindow || s.NextTry.Sub(start) > rateWindow+5*time.Minute {
					t.Errorf("next try at %v, want it when the first order is an hour old", s.NextTry.Sub(start))
				}
			}
			m.Close()
		}
		times := w.ca.ordered(alpha)
		if len(times) < 12 {
			t.Errorf("%d orders in five hours, want all that are allowed", len(times))
		}
		for i := 3; i < len(times); i++ {
			if times[i].Sub(times[i-3]) < rateWindow-time.Second {
				t.Errorf("orders %d to %d came within %v, want an hour for four", i-2, i+1, times[i].Sub(times[i-3]))
			}
		}
		// Another name is not held back.
		w.cfg.Names = append(w.cfg.Names, beta)
		m := w.open()
		defer m.Close()
		sleep(10 * time.Second)
		mustCert(t, m, beta)
	})
}

func TestRetryAfterOfTheCAIsKept(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		want        time.Duration
	}{
		{"seconds", "7200", 2 * time.Hour},
		{"a date", time.Date(2000, 1, 1, 3, 0, 0, 0, time.UTC).Format(http.TimeFormat), 3 * time.Hour},
		{"too long", "99999999", maxRetryAfter},
		{"a date far away", time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Format(http.TimeFormat), maxRetryAfter},
		{"none", "", time.Minute},
		{"nonsense", "soon", time.Minute},
		{"negative", "-5", time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(w *world) {

				w.ca.hook = func(rw http.ResponseWriter, step, _ string) bool {
					if step != "order" {
						return false
					}
					rw.Header().Set("Retry-After", tc.value)
					problem(rw, http.StatusTooManyRequests, "rateLimited", "too many certificates this week")
					return true
				}
				start := time.Now()
				m := w.open()
				defer m.Close()
				sleep(30 * time.Second)
				wantFault(t, m, alpha, StepOrder, "too many certificates this week", "rateLimited", "staging")
				if next := status(t, m, alpha).NextTry.Sub(start); next < tc.want-time.Second || next > tc.want*6/5+time.Second {
					t.Errorf("next try after %v, want %v", next, tc.want)
				}
				if n := w.ca.count("order"); n != 1 {
					t.Errorf("%d requests for an order, want 1", n)
				}
				w.ca.set(func() { w.ca.hook = nil })
				sleep(tc.want*6/5 + time.Minute)
				mustCert(t, m, alpha)
			})
		})
	}
}

func TestCADownAtStart(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.down = true
		m := w.open()
		defer m.Close()
		sleep(30 * time.Second)
		wantFault(t, m, alpha, StepAccount, "down for maintenance")
		sleep(time.Hour)
		w.ca.set(func() { w.ca.down = false })
		sleep(time.Hour)
		mustCert(t, m, alpha)
		if n := len(w.ca.ordered(alpha)); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}

func TestUnreachableCA(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.close()
		m := w.open()
		defer m.Close()
		sleep(30 * time.Second)
		wantFault(t, m, alpha, StepAccount, "refused")
	})
}

// A certificate stays in use until its end, however often renewal fails, and after that handshakes fail and say so.
func TestCertificateThatIsNotRenewed(t *testing.T) {
	inWorld(t, func(w *world) {
		m := w.open()
		defer m.Close()
		sleep(10 * time.Second)
		first := mustCert(t, m, alpha)
		w.ca.set(func() { w.ca.down = true })
		sleep(time.Until(first.NotAfter) - time.Minute)
		if still := mustCert(t, m, alpha); !still.Equal(first) {
			t.Error("the old certificate is not in use any more before its end")
		}
		if n := status(t, m, alpha).Failed; n < 50 || n > 1000 {
			t.Errorf("%d tries within the last third of 90 days, want some a day, and more towards the end", n)
		}
		for _, want := range []string{"was not renewed, the old one stays", "expires soon"} {
			if w.logs.count(want) == 0 {
				t.Errorf("log has no %q", want)
			}
		}
		if n := w.logs.count("expires soon"); n != 1 {
			t.Errorf("%d warnings of the coming end, want 1", n)
		}
		sleep(3 * time.Minute)
		wantNoCert(t, m, alpha, Expired)
		if n := w.logs.count("certificate has expired"); n != 1 || w.logs.count("level=ERROR") == 0 {
			t.Errorf("%d records of the end, want 1", n)
		}
		m.Close()
		m = w.open() // a restart does not make it good
		defer m.Close()
		wantNoCert(t, m, alpha, Expired)
		w.ca.set(func() { w.ca.down = false })
		sleep(2 * noneRetry)
		if mustCert(t, m, alpha).Equal(first) {
			t.Error("the old certificate is there again")
		}
	})
}

func TestTwoManagersOfOneFolder(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.life = 2 * day
		m1 := w.open()
		defer m1.Close()
		sleep(10 * time.Second)
		first := mustCert(t, m1, alpha)
		m2, err := Open(w.cfg, w.env())
		if err != nil {
			t.Fatal(err)
		}
		defer m2.Close()
		if got := mustCert(t, m2, alpha); !got.Equal(first) {
			t.Error("the second serves another certificate")
		}
		sleep(time.Second)
		if m1.Following() || !m2.Following() || !status(t, m2, alpha).NextTry.IsZero() {
			t.Errorf("Following = %v, %v, want the second to follow, and to plan nothing", m1.Following(), m2.Following())
		}
		<-m1.Changed()
		sleep(defaultTiming().followPoll)
		second := mustCert(t, m1, alpha)
		if got := mustCert(t, m2, alpha); !got.Equal(second) || second.Equal(first) {
			t.Error("the second does not serve what the first has renewed")
		}
		if n := len(w.ca.ordered(alpha)); n != 2 {
			t.Errorf("%d orders, want 2", n)
		}
		if w.logs.count("following it") != 1 {
			t.Errorf("log %s, want one record of following", w.logs)
		}
		m1.Close()
		w.ca.validates(m2)
		sleep(2 * defaultTiming().followPoll)
		if m2.Following() || status(t, m2, alpha).NextTry.IsZero() {
			t.Error("the second does not take over")
		}
		<-m2.Changed()
		if n := len(w.ca.ordered(alpha)); n != 3 {
			t.Errorf("%d orders, want 3", n)
		}
	})
}

func TestFolderThatCannotBeWritten(t *testing.T) {
	t.Run("no order is made that cannot be counted", func(t *testing.T) {
		inWorld(t, func(w *world) {
			block := filepath.Join(w.store().ordersPath(), "in the way")
			if err := os.MkdirAll(block, 0o700); err != nil {
				t.Fatal(err)
			}
			m := w.open()
			defer m.Close()
			sleep(time.Hour)
			wantFault(t, m, alpha, StepKeep, "no order is made", "orders.json", "full")
			if n := w.ca.count("order"); n != 0 {
				t.Errorf("%d orders, want none", n)
			}
			if err := os.RemoveAll(w.store().ordersPath()); err != nil {
				t.Fatal(err)
			}
			sleep(2 * noneRetry)
			mustCert(t, m, alpha)
		})
	})
	t.Run("a certificate is used and kept later", func(t *testing.T) {
		inWorld(t, func(w *world) {
			path := w.store().certPath(alpha)
			if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
				t.Fatal(err)
			}
			m := w.open()
			defer m.Close()
			sleep(time.Hour)
			first := mustCert(t, m, alpha)
			wantFault(t, m, alpha, StepKeep, "it is used, and lost with the next start")
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			sleep(10 * day)
			if s := status(t, m, alpha); s.LastError != nil || s.Issued != 1 {
				t.Errorf("Status = %+v, want it kept without another order", s)
			}
			kept, err := w.store().readCert(alpha)
			if err != nil || !kept.cert.Leaf.Equal(first) {
				t.Errorf("the file has %v, %v, want the certificate in use", kept, err)
			}
			if n := len(w.ca.ordered(alpha)); n != 1 {
				t.Errorf("%d orders, want 1", n)
			}
			checkModes(t, w.store())
		})
	})
	t.Run("a lock that cannot be taken", func(t *testing.T) {
		inWorld(t, func(w *world) {
			m := w.open()
			sleep(10 * time.Second)
			m.Close()
			lock := w.store().lockPath()
			if err := errors.Join(os.Remove(lock), os.Mkdir(lock, 0o700)); err != nil {
				t.Fatal(err)
			}
			m = w.open()
			defer m.Close()
			mustCert(t, m, alpha)
			sleep(time.Minute)
			wantFault(t, m, alpha, StepLock, "lock", "write to the folder")
			if n := w.logs.count("certificates cannot be ordered"); n != 1 {
				t.Errorf("%d records of it, want 1", n)
			}
			if err := os.Remove(lock); err != nil {
				t.Fatal(err)
			}
			sleep(time.Minute)
			if s := status(t, m, alpha); s.LastError != nil || m.Following() {
				t.Errorf("Status = %+v after it was mended, want no error", s)
			}
		})
	})
}

func TestKeptFileThatCannotBeUsed(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		serve bool // the kept certificate is served until the new one is there
		says  string
	}{
		{"empty", func(t *testing.T, path string) { writeTestFile(t, path, nil) }, false, "does not begin with a PRIVATE KEY"},
		{"cut off", func(t *testing.T, path string) { cutFile(t, path, 300) }, false, "1 to 5 are right"},
		{"of another name", func(t *testing.T, path string) {
			if err := os.Rename(filepath.Join(filepath.Dir(path), "cert-"+beta+".pem"), path); err != nil {
				t.Fatal(err)
			}
		}, false, "not for the name"},
		{"a folder", func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, false, "is not a regular file"},
		{"key that others can read", func(t *testing.T, path string) {
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}, true, "renewed at once"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.cfg.Names = []string{alpha, beta}
				m := w.open()
				sleep(10 * time.Second)
				first := mustCert(t, m, alpha)
				m.Close()
				w.cfg.Names = []string{alpha}
				path := w.store().certPath(alpha)
				tc.spoil(t, path)
				m = w.open()
				defer m.Close()
				if _, err := certFor(m, alpha); (err == nil) != tc.serve {
					t.Errorf("GetCertificate = %v, want a certificate: %v", err, tc.serve)
				}
				sleep(10 * time.Second)
				if mustCert(t, m, alpha).Equal(first) {
					t.Error("the certificate is not replaced")
				}
				if text := w.logs.String(); !strings.Contains(text, tc.says) {
					t.Errorf("log %s, want %q", text, tc.says)
				}
			})
		})
	}
}

func cutFile(t testing.TB, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

func TestAccountThatTheCAHasForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		m := w.open()
		sleep(10 * time.Second)
		m.Close()
		before, err := os.ReadFile(w.store().accountPath())
		if err != nil {
			t.Fatal(err)
		}
		w.ca.set(func() { clear(w.ca.accounts) })
		w.cfg.Names = []string{beta}
		m = w.open()
		defer m.Close()
		sleep(10 * time.Second)
		mustCert(t, m, beta)
		after, err := decodeAccount(before)
		if err != nil {
			t.Fatal(err)
		}
		thumb, err := xacme.JWKThumbprint(after.key.Public())
		if err != nil || w.ca.accounts[thumb] == 0 || len(w.ca.accounts) != 1 {
			t.Errorf("accounts %v, want one with the key that is kept", w.ca.accounts)
		}
	})
}

func TestAccountFileIsDamaged(t *testing.T) {
	inWorld(t, func(w *world) {
		path := w.store().accountPath()
		writeTestFile(t, path, []byte(`{"key": "gone"}`))
		m := w.open()
		defer m.Close()
		sleep(10 * time.Second)
		wantFault(t, m, alpha, StepAccount, path, "put it back, or remove it")
		if data, err := os.ReadFile(path); err != nil || string(data) != `{"key": "gone"}` {
			t.Errorf("the file has become %q, %v", data, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		sleep(5 * time.Minute)
		mustCert(t, m, alpha)
	})
}

func TestNewEmailIsToldOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.Email = "old@example.com"
		w.open().closeAfter(10 * time.Second)
		w.cfg.Email = "new@example.com"
		for i := range 3 {
			w.cfg.Names = []string{fmt.Sprintf("n%d.example", i)}
			w.open().closeAfter(10 * time.Second)
		}
		if got := w.ca.emails[1]; got != "mailto:new@example.com" {
			t.Errorf("contact %q, want the new one", got)
		}
		if n := w.ca.count("account"); n != 2 {
			t.Errorf("%d requests for the account, want one to make it and one for the new address", n)
		}
		// An account that the CA has and whose file has lost its URL is found again, and may have another address there.
		file := w.store().accountPath()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		writeTestFile(t, file, []byte(string(data[:strings.Index(string(data), `"url"`)])+`"url": ""}`))
		w.ca.set(func() { w.ca.emails[1] = "mailto:other@example.com" })
		w.cfg.Names = []string{beta}
		w.open().closeAfter(10 * time.Second)
		if got := w.ca.emails[1]; got != "mailto:new@example.com" || len(w.ca.accounts) != 1 {
			t.Errorf("%d accounts with contact %q, want one with ours", len(w.ca.accounts), got)
		}
	})
}

func (m *Manager) closeAfter(d time.Duration) {
	sleep(d)
	m.Close()
}

// A book of orders that is damaged, or of a clock that was ahead, keeps nothing from being renewed for long.
func TestOrderBook(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name, text string
		wait       time.Duration
		err        bool
	}{
		{"none", "", 0, false},
		{"damaged", "{", 0, true},
		{"two within an hour", fmt.Sprintf(`{"a": [%d, %d]}`, now.Add(-time.Minute).Unix(), now.Add(-50*time.Minute).Unix()), 10 * time.Minute, false},
		{"one within an hour", fmt.Sprintf(`{"a": [%d, %d]}`, now.Add(-time.Minute).Unix(), now.Add(-61*time.Minute).Unix()), 0, false},
		{"of another name", fmt.Sprintf(`{"b": [%d, %d]}`, now.Unix(), now.Unix()), 0, false},
		{"of times to come", fmt.Sprintf(`{"a": [%d, %d]}`, now.AddDate(5, 0, 0).Unix(), now.AddDate(6, 0, 0).Unix()), time.Hour, false},
		{"far too many", `{"a": [` + strings.Repeat("1,", 50_000) + fmt.Sprint(now.Unix()) + `]}`, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := orderBook{path: filepath.Join(t.TempDir(), "orders.json"), limit: 2}
			if tc.text != "" {
				writeTestFile(t, b.path, []byte(tc.text))
			}
			if err := b.load(); (err != nil) != tc.err {
				t.Errorf("load = %v, want an error: %v", err, tc.err)
			}
			if wait, err := b.take("a", now); wait != tc.wait || err != nil {
				t.Errorf("take = %v, %v, want %v", wait, err, tc.wait)
			}
			b.forget(now.Add(3 * time.Hour))
			if len(b.times) != 0 {
				t.Errorf("three hours later the book has %v, want nothing", b.times)
			}
		})
	}
}

func TestBackoffIsBounded(t *testing.T) {
	for _, tc := range []struct {
		failures   int
		left, want time.Duration
	}{
		{1, 0, time.Minute}, {2, 0, 2 * time.Minute}, {7, 0, time.Hour}, {1000, 0, time.Hour},
		{1, 30 * day, time.Minute}, {10, 30 * day, 6 * time.Hour}, {1 << 30, 30 * day, 6 * time.Hour},
		{10, 4 * time.Hour, time.Hour}, {10, time.Minute, time.Minute}, {10, -day, time.Hour},
	} {
		if got := backoff(time.Minute, tc.failures, tc.left); got != tc.want {
			t.Errorf("backoff(%d failures, %v left) = %v, want %v", tc.failures, tc.left, got, tc.want)
		}
	}
}

func TestKeptFilesHaveSafeNames(t *testing.T) {
	s := store{dir: "d"}
	long := strings.Repeat("a.", 120) + "example"
	for _, name := range []string{alpha, long, "localhost"} {
		if detail, _ := checkName(name); detail != "" {
			t.Fatal(detail)
		}
		path := s.certPath(name)
		if filepath.Dir(path) != "d" || len(filepath.Base(path)) > 200 {
			t.Errorf("certPath(%q) = %q, want a short name in the folder", name, path)
		}
	}
	if s.certPath(long) == s.certPath("b."+long[2:]) {
		t.Error("two long names share a file")
	}
}

func TestPairComesBackAsItWas(t *testing.T) {
	inWorld(t, func(w *world) {
		w.open().closeAfter(10 * time.Second)
		data, err := os.ReadFile(w.store().certPath(alpha))
		if err != nil {
			t.Fatal(err)
		}
		var types []string
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			types = append(types, block.Type)
		}
		if want := []string{"PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"}; !slices.Equal(types, want) {
			t.Errorf("the file has %q, want %q", types, want)
		}
	})
}
