package jwt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeIssuer is a key set that a test changes, in synthetic time.
type fakeIssuer struct {
	mu    sync.Mutex
	set   string
	life  time.Duration
	err   error
	wait  time.Duration // how long a refresh takes
	loads []time.Time
}

func (f *fakeIssuer) load(ctx context.Context) ([]byte, time.Duration, error) {
	f.mu.Lock()
	f.loads = append(f.loads, time.Now())
	set, life, err, wait := f.set, f.life, f.err, f.wait
	f.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	return []byte(set), life, err
}

func (f *fakeIssuer) change(set string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set, f.err = set, err
}

func (f *fakeIssuer) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.loads)
}

// startFake makes a Verifier whose issuer is f. It must run in a bubble.
func startFake(t *testing.T, f *fakeIssuer, refreshed func(error)) *Verifier {
	t.Helper()
	if refreshed == nil {
		refreshed = func(error) {}
	}
	// With a key of its own the configuration is good without an address.
	v, err := New(Config{Issuers: []IssuerConfig{{Issuer: testIssuer, Audiences: []string{testAudience}, JWKS: jwks(edwards())}}}, Env{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	by := v.issuers[testIssuer]
	by.fixed = nil
	by.source = newSource(f.load, refreshed, v.tellChanged, ctx.Done())
	v.cancel = cancel
	v.loops.Go(func() { by.source.refreshLoop(ctx, 0) })
	t.Cleanup(func() { v.Close() })
	return v
}

func TestSourceRefreshesBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{set: jwks(p256()), life: 40 * time.Minute}
		startFake(t, f, nil)
		time.Sleep(24 * time.Hour)
		f.mu.Lock()
		defer f.mu.Unlock()
		for i, at := range f.loads[1:] {
			if d := at.Sub(f.loads[i]); d > 30*time.Minute || d < 25*time.Minute {
				t.Fatalf("refresh %d came after %v, want 25m to 30m for a life of 40m", i+1, d)
			}
		}
		if len(f.loads) < 48 {
			t.Errorf("%d refreshes in a day", len(f.loads))
		}
	})
}

func TestSourceRetriesLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{err: errors.New("down"), life: minLife}
		var failures int
		startFake(t, f, func(err error) {
			if err != nil {
				failures++
			}
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		want := cooldown
		for i, at := range f.loads[1:] {
			if d := at.Sub(f.loads[i]); d != want {
				t.Fatalf("try %d came after %v, want %v", i+1, d, want)
			}
			want = min(2*want, maxRetry)
		}
		if failures != len(f.loads) {
			t.Errorf("%d failures were told, want %d", failures, len(f.loads))
		}
	})
}

func TestSourceServesStaleForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{set: jwks(p256()), life: maxLife}
		v := startFake(t, f, nil)
		token := p256().token(t, goodClaims(map[string]any{"exp": time.Now().Add(72 * time.Hour).Unix()}))
		held := wantTaken(t, v, token)
		f.change("", errors.New("down"))
		time.Sleep(maxStale - time.Minute)
		wantTaken(t, v, token)
		wantTaken(t, v, p256().token(t, goodClaims(nil)))
		time.Sleep(2 * time.Hour)
		if v.Valid(held) {
			t.Error("Valid = true with keys that nobody has confirmed for a day")
		}
		wantRefused(t, v, token, KeysUnavailable)
		f.change(jwks(p256()), nil)
		time.Sleep(maxRetry + time.Second)
		wantTaken(t, v, token)
		if !v.Valid(held) {
			t.Error("Valid = false though the issuer has confirmed its keys")
		}
	})
}

func TestSourceFirstTokensWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{set: jwks(p256()), life: maxLife, wait: 2 * time.Second}
		v := startFake(t, f, nil)
		start := time.Now()
		wantTaken(t, v, p256().token(t, goodClaims(nil)))
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("Verify took %v, want the 2s of the refresh", d)
		}
	})
}

func TestSourceCooldownAndMissingKids(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{set: jwks(p256()), life: maxLife}
		v := startFake(t, f, nil)
		unknown := func(kid string) { wantRefused(t, v, signer{kid, p256().key}.token(t, goodClaims(nil)), UnknownKey) }
		want := func(n int, when string) {
			t.Helper()
			if got := f.count(); got != n {
				t.Fatalf("%s: %d refreshes, want %d", when, got, n)
			}
		}
		wantTaken(t, v, p256().token(t, goodClaims(nil)))
		unknown("a")
		want(1, "within the cooldown of the first")
		time.Sleep(cooldown)
		unknown("a")
		want(2, "after it")
		time.Sleep(cooldown)
		unknown("a")
		want(2, "the same kid again")
		unknown("b")
		want(3, "another kid")
		time.Sleep(missingLife)
		unknown("a")
		want(4, "the same kid after half a minute")
		// A sender of ever new kids gets one refresh in ten seconds and no more room than 256 kids.
		for i := range 10 * maxMissing {
			unknown(fmt.Sprint(i))
			time.Sleep(100 * time.Millisecond)
		}
		if got := f.count() - 4; got > 10*maxMissing/100+2 {
			t.Errorf("%d refreshes in %d s", got, maxMissing)
		}
		for i := range 3 * maxMissing {
			v.issuers[testIssuer].source.miss(fmt.Sprint("kid", i))
		}
		if n := len(v.issuers[testIssuer].source.missing); n > maxMissing {
			t.Errorf("%d missing kids are remembered, want %d at most", n, maxMissing)
		}
	})
}

func TestSourceFailedRefreshSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{set: jwks(p256()), life: maxLife}
		v := startFake(t, f, nil)
		wantTaken(t, v, p256().token(t, goodClaims(nil)))
		time.Sleep(cooldown)
		down := errors.New("down")
		f.change("", down)
		_, err := v.Verify(t.Context(), signer{"new", p256().key}.token(t, goodClaims(nil)))
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != KeysUnavailable || !errors.Is(err, down) {
			t.Errorf("Verify = %v, want %s because of %v", err, KeysUnavailable, down)
		}
		// It is known by then that the issuer is down; the known key goes on.
		wantRefused(t, v, signer{"new", p256().key}.token(t, goodClaims(nil)), UnknownKey)
		wantTaken(t, v, p256().token(t, goodClaims(map[string]any{"sub": "bob"})))
	})
}

func TestSourceWithoutKids(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// An issuer that writes no kids is found out by the signature.
		anon := func(s signer) signer { return signer{"", s.key} }
		f := &fakeIssuer{set: jwksOf(withoutKid(p256())), life: maxLife}
		v := startFake(t, f, nil)
		sign := func(s signer) string {
			return anon(s).raw(t, s.alg(), `{"alg":"`+s.alg()+`"}`, goodPayload(t))
		}
		wantTaken(t, v, sign(p256()))
		next := signer{"", ecKey(elliptic256())}
		f.change(jwksOf(withoutKid(next)), nil)
		time.Sleep(cooldown)
		wantTaken(t, v, sign(next))
		wantRefused(t, v, sign(p256()), BadSignature)
		f.change(jwksOf(withoutKid(edwards())), nil)
		time.Sleep(cooldown + missingLife)
		wantTaken(t, v, sign(edwards()))
	})
}

func withoutKid(s signer) map[string]any {
	m := s.jwk()
	delete(m, "kid")
	return m
}

func TestSourceFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := writeFile(t, "jwks.json", jwks(p256()))
		cfg := config("")
		cfg.Issuers[0].JWKSFile = file
		v := newVerifier(t, cfg, Env{})
		defer v.Close()
		token := p256().token(t, goodClaims(nil))
		wantTaken(t, v, token)
		if err := os.WriteFile(file, []byte(jwks(edwards())), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(fileLife + time.Second)
		wantTaken(t, v, edwards().token(t, goodClaims(nil)))
		wantRefused(t, v, token, UnknownKey)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		wantTaken(t, v, edwards().token(t, goodClaims(nil)))
		if s := v.Stats().Issuers[0]; s.Failures == 0 || s.Keys != 1 {
			t.Errorf("Stats = %+v, want failures and the old key", s)
		}
	})
}
