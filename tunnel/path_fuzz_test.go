package tunnel

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

// FuzzDecisionPath wants that policy is asked about a path that no reader takes for another: it stays the same when it is read again,
// and when dot segments, double slashes and parameters are taken away as servers do.
func FuzzDecisionPath(f *testing.F) {
	for _, text := range []string{"/", "*", "", "/a/b", "//a//b/", "/a/../b", "/a/..;x/b", "/;x", "/a/.", "/a\\..\\b", "/a/%2e%2e", "a/b", "/a;x/b", "/...", "/a/\x00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := DecisionPath(text)
		if err != nil || got == "*" {
			return
		}
		if again, err := DecisionPath(got); err != nil || again != got {
			t.Fatalf("%q becomes %q, and that %q, %v", text, got, again, err)
		}
		clean := path.Clean(got)
		if strings.HasSuffix(got, "/") && clean != "/" {
			clean += "/"
		}
		if got[0] != '/' || clean != got {
			t.Fatalf("%q becomes %q, which others read as %q", text, got, clean)
		}
		var bare []string
		for segment := range strings.SplitSeq(got, "/") {
			name, _, _ := strings.Cut(segment, ";")
			bare = append(bare, name)
		}
		if without := strings.Join(bare, "/"); path.Clean(without) != strings.TrimSuffix(without, "/") && without != "/" {
			t.Fatalf("%q becomes %q, which without parameters others read as %q", text, got, path.Clean(without))
		}
		if u, err := url.Parse((&url.URL{Path: got}).EscapedPath()); err != nil || u.Path != got {
			t.Fatalf("%q becomes %q, which is written as another", text, got)
		}
	})
}

// FuzzTargetOfSNI wants that a server name leads to the one host and port that it spells.
func FuzzTargetOfSNI(f *testing.F) {
	for _, text := range []string{"a.example", "outbound_.80_._.a.example", "outbound_.80_.v1_.a", "outbound_.0_._.a", "outbound_.80", "outbound_.80_._.10.0.0.1", "outbound_.080_._.a", "outbound_.80_._._.a", "A.Example."} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, name string) {
		to, explicit, err := targetOfSNI(name)
		if err != nil {
			return
		}
		if to.Port == 0 || explicit != strings.HasPrefix(name, istioSNI) {
			t.Fatalf("%q leads to %v, explicit %v", name, to, explicit)
		}
		if again, err := ParseAuthority(to.String()); err != nil || again != to {
			t.Fatalf("%q leads to %v, which is read as %v, %v", name, to, again, err)
		}
	})
}

// FuzzTracestate wants that what is passed on is within the bounds, and one list.
func FuzzTracestate(f *testing.F) {
	for _, text := range []string{"a=1", "a=1,b=2", "a=1,a=2", "", "a", "a=1,,b=2", "t@v=x", " a=1 , b=2 ", "a=\x7f"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !validTracestate(s) {
			return
		}
		if len(s) > maxTracestateLen || strings.Count(s, ",") >= maxTracestateMembers || strings.ContainsAny(s, "\r\n\x00") {
			t.Fatalf("%q is passed on", s)
		}
	})
}
