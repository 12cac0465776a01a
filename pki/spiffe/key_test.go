package spiffe

import (
	"strings"
	"testing"
)

func TestParseKey(t *testing.T) {
	digest := [32]byte{1, 2, 3, 31: 0xff}
	id := KeyID(digest)
	name := id.String()
	if got, err := ParseName(name); err != nil || got != id {
		t.Fatalf("ParseName(%q) = %v, %v", name, got, err)
	}
	if !id.IsKey() || id.IsZero() || id.TrustDomain() != name || id.Path() != "" || id.Namespace() != "" || id.ServiceAccount() != "" {
		t.Errorf("%v is not a trust domain of its own without a path", id)
	}
	other := KeyID([32]byte{2})
	if other.TrustDomain() == id.TrustDomain() {
		t.Error("two keys are of one trust domain")
	}
	if _, err := Parse(name); err == nil {
		t.Error("Parse, which reads what certificates say, takes the name of a key")
	}
	for _, bad := range []string{
		"", "key:", name + "a", name[:len(name)-1], strings.ToUpper(name), name + "=", name[:len(name)-1] + "b",
		"key:" + strings.Repeat("1", 52), "key:" + strings.Repeat("a", 51) + "\n", "spiffe://" + name,
	} {
		if got, err := ParseKey(bad); err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error", bad, got)
		}
	}
	var zero ID
	if zero.IsKey() || zero.TrustDomain() != "" {
		t.Error("the zero ID is a key")
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(KeyID([32]byte{}).String())
	f.Add("key:")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseKey(s); err == nil && (id.String() != s || !id.IsKey()) {
			t.Errorf("ParseKey(%q) = %q", s, id)
		}
	})
}
