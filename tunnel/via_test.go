package tunnel

import (
	"strings"
	"testing"
)

func TestVia(t *testing.T) {
	const own, other = viaPrefix + "00112233445566aa", viaPrefix + "ffeeddccbbaa9988"
	anonymous := func(n int) string { return strings.TrimSuffix(strings.Repeat(viaAnonymous+", ", n), ", ") }
	for _, tt := range []struct {
		name, fields string
		trusted      bool
		hops         int
		again        bool
		list         string
	}{
		{"nothing", "", false, 0, false, ""},
		{"one of ours", other, false, 1, false, other},
		{"ourselves", other + ", " + own, false, 2, true, other + ", " + own},
		{"ourselves between others", "2 a," + own + ",1.1 b", false, 3, true, "2 culvert, " + own + ", 2 culvert"},
		{"a name from a stranger", "2 secret.example", false, 1, false, anonymous(1)},
		{"a name from a trusted peer", "HTTP/2 gw.example:443", true, 1, false, "HTTP/2 gw.example:443"},
		{"a comment from a trusted peer", "1.1 fred (x)", true, 1, false, anonymous(1)},
		{"a long name from a trusted peer", "2 " + strings.Repeat("x", maxViaMember), true, 1, false, anonymous(1)},
		{"no version", "fred", true, 1, false, anonymous(1)},
		{"an id with something behind", own + "0", false, 1, false, anonymous(1)},
		{"an id in upper case", strings.ToUpper(own), false, 1, false, anonymous(1)},
		{"an id cut short", own[:len(own)-1], false, 1, false, anonymous(1)},
		{"empty members", ", ,2 a,,", false, 1, false, anonymous(1)},
		{"seven", strings.Repeat("2 x, ", 7), false, 7, false, anonymous(7)},
		{"nine", strings.Repeat("2 x, ", 9), false, 9, false, anonymous(8)},
		{"as many as fit", strings.Repeat("a,", maxViaLen/2), false, 9, false, anonymous(8)},
		{"100,000 members", strings.Repeat("2 x,", 100_000), true, maxHops, false, ""},
		{"100,000 times ourselves", strings.Repeat(own+",", 100_000), true, maxHops, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := readVia(tt.fields, own, tt.trusted)
			if p.hops != tt.hops || p.again != tt.again || p.list != tt.list {
				t.Errorf("readVia(%.80q) = %d, %v, %q, want %d, %v, %q", tt.fields, p.hops, p.again, p.list, tt.hops, tt.again, tt.list)
			}
			if len(p.fields) > maxViaLen {
				t.Errorf("%d bytes are kept", len(p.fields))
			}
		})
	}
	if got := viaOf(nil, own); got != own {
		t.Errorf("the first gateway sends via %q, want %q", got, own)
	}
	if got, want := viaOf(readVia("2 x", own, false), own), "2 culvert, "+own; got != want {
		t.Errorf("the second gateway sends via %q, want %q", got, want)
	}
	if a, b := newViaMember(), newViaMember(); a == b || !isOurs(a) || !isOurs(b) || len(a) != 26 {
		t.Errorf("newViaMember = %q and %q, want two of 26 bytes that are told apart and known as ours", a, b)
	}
}

// A list that comes with every request of a connection is read once.
func TestViaIsReadOnce(t *testing.T) {
	g := testGateway()
	g.via = newViaMember()
	p := testPlan(TimeoutConfig{})
	g.plan.Store(p)
	s := &serverConn{g: g}
	s.trust.Store(&trust{plan: p})
	fields := []string{newViaMember()}
	first := s.passedOf(fields)
	if n := testing.AllocsPerRun(100, func() {
		if s.passedOf(fields) != first {
			t.Error("it was read again")
		}
	}); n > 0 {
		t.Errorf("%v allocations for a list that is known", n)
	}
	if again := s.passedOf([]string{"2 x"}); again == first || again.hops != 1 {
		t.Errorf("another list is taken for the first: %+v", again)
	}
}

func FuzzVia(f *testing.F) {
	const own = viaPrefix + "00112233445566aa"
	f.Add("2 a, "+own+", 1.1 b (c, d)", true)
	f.Add(",,"+own+"x,\x00", false)
	f.Fuzz(func(t *testing.T, fields string, trusted bool) {
		p := readVia(fields, own, trusted)
		if p.hops < 0 || p.hops > maxHops+1 || len(p.list) > maxHops*(maxViaMember+2) {
			t.Fatalf("readVia(%q) = %d, %q", fields, p.hops, p.list)
		}
		if q := readVia(p.list, own, trusted); q.list != p.list || q.again != p.again && p.hops <= maxHops {
			t.Fatalf("what is passed on, %q, is read as %q", p.list, q.list)
		}
	})
}
