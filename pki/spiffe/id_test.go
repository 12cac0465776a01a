package spiffe

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestParseAccepts(t *testing.T) {
	long := "spiffe://a/" + strings.Repeat("x", MaxLen-len("spiffe://a/"))
	for _, tc := range []struct{ name, in, td, path, ns, sa string }{
		{"istio", "spiffe://cluster.local/ns/default/sa/web", "cluster.local", "/ns/default/sa/web", "default", "web"},
		{"opaque path", "spiffe://example.com/9eebccd2-12bf", "example.com", "/9eebccd2-12bf", "", ""},
		{"upper-case path", "spiffe://example.com/Web_A.b-c", "example.com", "/Web_A.b-c", "", ""},
		{"underscore in trust domain", "spiffe://my_td-1.example/x", "my_td-1.example", "/x", "", ""},
		{"IPv4 trust domain", "spiffe://10.0.0.1/x", "10.0.0.1", "/x", "", ""},
		{"three dots is no relative segment", "spiffe://a/...", "a", "/...", "", ""},
		{"longest", long, "a", long[len("spiffe://a"):], "", ""},
		{"longest trust domain", "spiffe://" + strings.Repeat("d", 255) + "/x", strings.Repeat("d", 255), "/x", "", ""},
		{"too many parts for istio", "spiffe://td/ns/a/sa/b/c", "td", "/ns/a/sa/b/c", "", ""},
		{"too few parts for istio", "spiffe://td/ns/a/sa", "td", "/ns/a/sa", "", ""},
		{"namespace only", "spiffe://td/ns/a", "td", "/ns/a", "", ""},
		{"other words than ns and sa", "spiffe://td/ns/a/sb/c", "td", "/ns/a/sb/c", "", ""},
		{"ns in other case", "spiffe://td/NS/a/sa/c", "td", "/NS/a/sa/c", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, err := Parse(tc.in)
			if err != nil {
				t.Fatalf("Parse(%q) = %v", tc.in, err)
			}
			if id.IsZero() || id.String() != tc.in || id.TrustDomain() != tc.td || id.Path() != tc.path ||
				id.Namespace() != tc.ns || id.ServiceAccount() != tc.sa {
				t.Errorf("Parse(%q) = %q %q %q %q", tc.in, id.TrustDomain(), id.Path(), id.Namespace(), id.ServiceAccount())
			}
		})
	}
}

// odd holds one text for each way in which a name is not the SPIFFE ID of a workload, with a word of the answer.
var odd = map[string]struct{ in, want string }{
	"empty":                        {"", "empty"},
	"only a scheme":                {"spiffe://", "trust domain is empty"},
	"no scheme":                    {"cluster.local/ns/default/sa/web", "does not begin with"},
	"other scheme":                 {"https://cluster.local/ns/default/sa/web", "does not begin with"},
	"upper-case scheme":            {"SPIFFE://cluster.local/x", "does not begin with"},
	"one slash":                    {"spiffe:/cluster.local/x", "does not begin with"},
	"leading space":                {" spiffe://cluster.local/x", "does not begin with"},
	"no trust domain":              {"spiffe:///ns/default/sa/web", "trust domain is empty"},
	"no path":                      {"spiffe://cluster.local", "no path"},
	"root path":                    {"spiffe://cluster.local/", "empty segment"},
	"trailing slash":               {"spiffe://cluster.local/ns/default/sa/web/", "trailing slash"},
	"empty segment":                {"spiffe://cluster.local/ns//sa/web", "empty segment"},
	"leading empty segment":        {"spiffe://cluster.local//x", "empty segment"},
	"dot segment":                  {"spiffe://cluster.local/ns/./sa/web", "relative segment"},
	"dot-dot segment":              {"spiffe://cluster.local/ns/../sa/web", "relative segment"},
	"dot-dot at the end":           {"spiffe://cluster.local/ns/..", "relative segment"},
	"percent in path":              {"spiffe://cluster.local/ns/def%61ult/sa/web", "percent"},
	"percent slash":                {"spiffe://cluster.local/ns%2Fdefault", "percent"},
	"percent in trust domain":      {"spiffe://cluster%2elocal/x", "percent"},
	"query":                        {"spiffe://cluster.local/x?a=b", "query"},
	"empty query":                  {"spiffe://cluster.local/x?", "query"},
	"query without path":           {"spiffe://cluster.local?a=/x", "query"},
	"fragment":                     {"spiffe://cluster.local/x#f", "fragment"},
	"fragment without path":        {"spiffe://cluster.local#/x", "fragment"},
	"port":                         {"spiffe://cluster.local:443/x", "port"},
	"empty port":                   {"spiffe://cluster.local:/x", "port"},
	"user":                         {"spiffe://user@cluster.local/x", "user information"},
	"empty user":                   {"spiffe://@cluster.local/x", "user information"},
	"user and password":            {"spiffe://u:p@cluster.local/x", "port"},
	"upper-case trust domain":      {"spiffe://Cluster.local/x", "lower case"},
	"IPv6 trust domain":            {"spiffe://[::1]/x", "only a-z"},
	"space in trust domain":        {"spiffe://cluster local/x", "only a-z"},
	"wildcard trust domain":        {"spiffe://*.local/x", "only a-z"},
	"wildcard in path":             {"spiffe://cluster.local/ns/*/sa/web", "only letters"},
	"NUL in trust domain":          {"spiffe://cluster.local\x00.evil/x", "only a-z"},
	"NUL in path":                  {"spiffe://cluster.local/ns/default/sa/web\x00", "only letters"},
	"newline":                      {"spiffe://cluster.local/x\n", "only letters"},
	"CR LF":                        {"spiffe://cluster.local/x\r\nhost: y", "only letters"},
	"comma":                        {"spiffe://cluster.local/x,spiffe://cluster.local/y", "only letters"},
	"semicolon":                    {"spiffe://cluster.local/x;v=1", "only letters"},
	"tilde, which RFC 3986 allows": {"spiffe://cluster.local/~x", "only letters"},
	"backslash":                    {`spiffe://cluster.local/ns\default`, "only letters"},
	"letter outside ASCII":         {"spiffe://cluster.local/büro", "only letters"},
	"homograph in trust domain":    {"spiffe://сluster.local/x", "only a-z"},
	"fullwidth slash":              {"spiffe://cluster.local/ns／default", "only letters"},
	"bad UTF-8":                    {"spiffe://cluster.local/\xff", "only letters"},
	"2049 bytes":                   {"spiffe://a/" + strings.Repeat("x", MaxLen+1-len("spiffe://a/")), "longer than 2048"},
	"256 bytes of trust domain":    {"spiffe://" + strings.Repeat("d", 256) + "/x", "longer than 255"},
}

func TestParseRefuses(t *testing.T) {
	for name, tc := range odd {
		t.Run(name, func(t *testing.T) {
			id, err := Parse(tc.in)
			var pe *ParseError
			if !errors.As(err, &pe) || !id.IsZero() {
				t.Fatalf("Parse(%q) = %q, %v, want a *ParseError", clip(tc.in), id, err)
			}
			if !strings.Contains(pe.Problem, tc.want) {
				t.Errorf("Parse(%q): problem %q, want one with %q", clip(tc.in), pe.Problem, tc.want)
			}
			if len(err.Error()) > 1024 || strings.ContainsAny(err.Error(), "\x00\r\n") {
				t.Errorf("Parse(%q): the error %q is not fit for a log line", clip(tc.in), err)
			}
		})
	}
}

func TestNew(t *testing.T) {
	for _, tc := range []struct{ name, td, ns, sa, want string }{
		{"plain", "cluster.local", "default", "web", "spiffe://cluster.local/ns/default/sa/web"},
		{"slash in namespace", "cluster.local", "a/sa/b", "web", ""},
		{"slash in account", "cluster.local", "default", "web/x", ""},
		{"slash in trust domain", "cluster.local/ns/evil", "default", "web", ""},
		{"empty namespace", "cluster.local", "", "web", ""},
		{"empty account", "cluster.local", "default", "", ""},
		{"empty trust domain", "", "default", "web", ""},
		{"dots", "cluster.local", "..", "web", ""},
		{"upper-case trust domain", "Cluster.local", "default", "web", ""},
		{"too long", "cluster.local", strings.Repeat("n", MaxLen), "web", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, err := New(tc.td, tc.ns, tc.sa)
			if id.String() != tc.want || (err == nil) != (tc.want != "") {
				t.Fatalf("New(%q, %q, %q) = %q, %v, want %q", tc.td, clip(tc.ns), tc.sa, id, err, tc.want)
			}
			var pe *ParseError
			if err != nil && !errors.As(err, &pe) {
				t.Errorf("New: error %T, want *ParseError", err)
			}
			if parsed, err := Parse(tc.want); tc.want != "" && (err != nil || parsed != id) {
				t.Errorf("Parse(%q) = %v, %v, want the ID that New made", tc.want, parsed, err)
			}
		})
	}
}

func TestCheckTrustDomain(t *testing.T) {
	if err := CheckTrustDomain("cluster.local"); err != nil {
		t.Errorf("CheckTrustDomain(cluster.local) = %v", err)
	}
	for _, td := range []string{"", "A", "a/b", "a:1", "spiffe://a", strings.Repeat("d", 256)} {
		if err := CheckTrustDomain(td); err == nil {
			t.Errorf("CheckTrustDomain(%q) = nil, want an error", clip(td))
		}
	}
}

func TestZeroID(t *testing.T) {
	var id ID
	if !id.IsZero() || id.String()+id.TrustDomain()+id.Path()+id.Namespace()+id.ServiceAccount() != "" {
		t.Errorf("zero ID = %q %q %q", id.String(), id.TrustDomain(), id.Path())
	}
}

func TestTextRoundTrip(t *testing.T) {
	id, err := New("cluster.local", "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[ID]ID{id: id})
	if err != nil {
		t.Fatal(err)
	}
	var back map[ID]ID
	if err := json.Unmarshal(text, &back); err != nil || back[id] != id {
		t.Errorf("json round trip of %s = %v, %v", text, back, err)
	}
	if err := back[id].sameAfterEmptyText(); err != nil {
		t.Error(err)
	}
	if err := (&ID{}).UnmarshalText([]byte("spiffe://x")); err == nil {
		t.Error("UnmarshalText(spiffe://x) = nil, want an error")
	}
}

// sameAfterEmptyText checks that an empty text sets the zero ID.
func (id ID) sameAfterEmptyText() error {
	if err := id.UnmarshalText(nil); err != nil || !id.IsZero() {
		return errors.New("UnmarshalText of nothing does not make the zero ID")
	}
	return nil
}

func TestAccessorsDoNotAllocate(t *testing.T) {
	id, err := New("cluster.local", "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	other := id
	n := testing.AllocsPerRun(100, func() {
		if id != other || id.TrustDomain() != "cluster.local" || id.Namespace() != "default" ||
			id.ServiceAccount() != "web" || len(id.String()) == 0 {
			t.Fatal("wrong parts")
		}
	})
	if n != 0 {
		t.Errorf("reading the parts of an ID allocates %v times, want 0", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, tc := range odd {
		f.Add(tc.in)
	}
	f.Add("spiffe://cluster.local/ns/default/sa/web")
	f.Add("spiffe://a/b/c")
	f.Add("spiffe://../...") // dots alone are a trust domain, and three of them a segment
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("Parse(%q) = %q with an error", s, id)
			}
			return
		}
		if id.String() != s || scheme+id.TrustDomain()+id.Path() != s || len(s) > MaxLen {
			t.Fatalf("Parse(%q) = %q + %q", s, id.TrustDomain(), id.Path())
		}
		if strings.ContainsAny(s, "%?#@*[]\\ \x00\r\n") || strings.Contains(id.Path(), "/../") || strings.HasSuffix(s, "/") {
			t.Fatalf("Parse(%q) = nil error", s)
		}
		if id.ServiceAccount() != "" {
			if again, err := New(id.TrustDomain(), id.Namespace(), id.ServiceAccount()); err != nil || again != id {
				t.Fatalf("New(parts of %q) = %q, %v", s, again, err)
			}
		}
	})
}
