package policy

import (
	"strings"
	"testing"

	"culvert/pki/spiffe"
)

// mustID parses an ID that the test relies on.
func mustID(t testing.TB, s string) spiffe.ID {
	t.Helper()
	id, err := spiffe.Parse(s)
	if err != nil {
		t.Fatalf("spiffe.Parse(%q) = %v", s, err)
	}
	return id
}

func TestPrincipalMatches(t *testing.T) {
	const (
		orders  = "spiffe://cluster.local/ns/shop/sa/orders"
		web     = "spiffe://cluster.local/ns/default/sa/web"
		foreign = "spiffe://cluster.local.evil.example/ns/shop/sa/orders"
		device  = "spiffe://cluster.local/device/7"
	)
	all := []string{orders, web, foreign, device, ""} // "" is the zero peer
	tests := []struct {
		entry string
		want  []string
	}{
		{"cluster.local/ns/shop/sa/orders", []string{orders}},
		{"spiffe://cluster.local/ns/shop/sa/orders", []string{orders}},
		{"cluster.local/ns/shop/sa/order", nil},
		{"cluster.local/*", []string{orders, web, device}},
		{"spiffe://cluster.local/*", []string{orders, web, device}},
		{"cluster.local/ns/shop/*", []string{orders}},
		{"cluster.local/ns/sho*", []string{orders}},
		{"cluster.local/ns/shop/sa/orders*", []string{orders}},
		{"cluster.local/ns/shop/sa/orders/*", nil},
		{"*/sa/orders", []string{orders, foreign}},
		{"*orders", []string{orders, foreign}},
		{"*.local/ns/shop/sa/orders", []string{orders}},
		{"*cluster.local/ns/shop/sa/orders", []string{orders}},
		{"spiffe://*/ns/default/sa/web", []string{web}},
		{"*xcluster.local/ns/shop/sa/orders", nil},
		{"*/7", []string{device}},
		{"*", []string{orders, web, foreign, device}},
		{"spiffe://*", []string{orders, web, foreign, device}},
		{"any", all},
	}
	for _, tt := range tests {
		t.Run(tt.entry, func(t *testing.T) {
			p, fault := parsePrincipal(tt.entry)
			if fault != "" {
				t.Fatalf("parsePrincipal(%q): %s", tt.entry, fault)
			}
			want := make(map[string]bool)
			for _, id := range tt.want {
				want[id] = true
			}
			for _, s := range all {
				id := spiffe.ID{}
				if s != "" {
					id = mustID(t, s)
				}
				if got := p.matches(id); got != want[s] {
					t.Errorf("principal %q matches %q = %v, want %v", tt.entry, s, got, want[s])
				}
			}
		})
	}
}

func TestPrincipalFaults(t *testing.T) {
	tests := []struct {
		name, entry string
		want        string // part of the reason, with what would be right
	}{
		{"empty", "", `or "any"`},
		{"any in capitals", "ANY", `"any" in lower case`},
		{"trust domain alone", "cluster.local", `"cluster.local/*"`},
		{"trust domain alone with scheme", "spiffe://cluster.local", `"cluster.local/*"`},
		{"trust domain and slash", "cluster.local/", `"cluster.local/*"`},
		{"upper-case trust domain", "Cluster.Local/ns/a/sa/b", `write "cluster.local"`},
		{"upper-case trust domain in prefix", "Cluster.Local/ns/*", `write "cluster.local"`},
		{"space", "cluster.local/ns/a/sa/b c", "space"},
		{"space in front", " cluster.local/ns/a/sa/b", "space"},
		{"list in one entry", "a/ns/a/sa/b,a/ns/a/sa/c", "several entries"},
		{"percent", "cluster.local/ns/a/sa/b%2fc", "percent-encoded"},
		{"port", "cluster.local:443/ns/a/sa/b", "neither user nor port"},
		{"user", "me@cluster.local/ns/a/sa/b", "neither user nor port"},
		{"query", "cluster.local/ns/a/sa/b?c", "query"},
		{"fragment", "cluster.local/ns/a/sa/b#c", "fragment"},
		{"other scheme", "https://cluster.local/ns/a/sa/b", "leave the scheme away"},
		{"scheme in capitals", "SPIFFE://cluster.local/ns/a/sa/b", "leave the scheme away"},
		{"scheme twice", "spiffe://spiffe://a/b", "leave the scheme away"},
		{"control character", "cluster.local/ns/a\n/sa/b", `'\n'`},
		{"not ASCII", "cluster.local/ns/bücher/sa/b", `'ü'`},
		{"not UTF-8", "cluster.local/ns/\xff/sa/b", `'�'`},
		{"slash at the end", "cluster.local/ns/a/", `"cluster.local/ns/a/*"`},
		{"empty segment", "cluster.local//a", "empty segment"},
		{"dot segment", "cluster.local/a/../b", "relative segment"},
		{"no trust domain", "/ns/a/sa/b", "no trust domain"},
		{"only scheme", "spiffe://", "no trust domain"},
		{"too long", "cluster.local/" + strings.Repeat("a", spiffe.MaxLen), "longer than"},
		{"star in the middle", "cluster.local/ns/*/sa/b", "beginning or at the end"},
		{"star at both ends", "*/ns/a/*", "beginning or at the end"},
		{"two stars", "**", "beginning or at the end"},
		{"prefix inside the trust domain", "cluster.local*", `write "cluster.local/*"`},
		{"prefix without trust domain", "/ns*", "no trust domain"},
		{"prefix with empty segment", "cluster.local/a//*", "match nothing"},
		{"prefix with dot segment", "cluster.local/../*", "match nothing"},
		{"suffix with slash at the end", "*/sa/b/", "match nothing"},
		{"suffix with dot segment", "*/a/./b", "match nothing"},
		{"suffix with empty segment", "*//b", "match nothing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, fault := parsePrincipal(tt.entry)
			if fault == "" || !strings.Contains(fault, tt.want) {
				t.Errorf("parsePrincipal(%q) = %q, want a fault with %q", tt.entry, fault, tt.want)
			}
		})
	}
}

// FuzzPrincipal compares an accepted entry with the plain reading of its text.
func FuzzPrincipal(f *testing.F) {
	for _, s := range []string{
		"", "any", "*", "spiffe://*", "cluster.local/ns/shop/sa/orders", "spiffe://a/b", "a/*", "*/b", "*b",
		"a/b*", "a*", "a/../*", "*/../b", "A/b", "a/%62", "a//b", "*a/b", "a/ns/x/sa/y/",
	} {
		f.Add(s)
	}
	ids := []string{
		"spiffe://cluster.local/ns/shop/sa/orders", "spiffe://a/b", "spiffe://a/ns/x/sa/y", "spiffe://a.b/c", "spiffe://x/x",
	}
	f.Fuzz(func(t *testing.T, entry string) {
		p, fault := parsePrincipal(entry)
		if fault != "" {
			return
		}
		if p.matches(spiffe.ID{}) != (entry == "any") {
			t.Fatalf("entry %q matches a peer without identity: %v", entry, p.matches(spiffe.ID{}))
		}
		if entry == "any" {
			return
		}
		text := strings.TrimPrefix(entry, "spiffe://")
		if p.kind == exactly {
			if id := mustID(t, "spiffe://"+text); !p.matches(id) {
				t.Fatalf("entry %q does not match itself", entry)
			}
		}
		for _, s := range ids {
			got, want := p.matches(mustID(t, s)), naiveMatch(text, strings.TrimPrefix(s, "spiffe://"))
			if got != want {
				t.Fatalf("entry %q matches %s = %v, want %v", entry, s, got, want)
			}
		}
	})
}

func naiveMatch(text, id string) bool {
	switch {
	case text == "*":
		return true
	case strings.HasSuffix(text, "*"):
		return strings.HasPrefix(id, strings.TrimSuffix(text, "*"))
	case strings.HasPrefix(text, "*"):
		return strings.HasSuffix(id, strings.TrimPrefix(text, "*"))
	}
	return text == id
}
