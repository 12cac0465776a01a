package spiffe

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// name is one GeneralName as it stands in a certificate: the tag of its kind and its bytes.
type name struct {
	tag      int
	text     string
	compound bool
}

const (
	tagEmail = 1
	tagDNS   = 2
	tagIP    = 7
)

// withNames returns a certificate as FromCertificate sees it, with a SAN extension made of names.
func withNames(t *testing.T, names ...name) *x509.Certificate {
	t.Helper()
	var raw []asn1.RawValue
	for _, n := range names {
		raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n.tag, Bytes: []byte(n.text), IsCompound: n.compound})
	}
	der, err := asn1.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return withSAN(der)
}

func withSAN(der []byte) *x509.Certificate {
	return &x509.Certificate{Extensions: []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 7, 128}},
		{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: der},
	}}
}

const web = "spiffe://cluster.local/ns/default/sa/web"

func TestFromCertificate(t *testing.T) {
	many := []name{{tag: tagURI, text: web}}
	for i := range MaxNames {
		many = append(many, name{tag: tagDNS, text: fmt.Sprintf("h%d.example", i)})
	}
	for _, tc := range []struct {
		name    string
		cert    *x509.Certificate
		problem string // "" = accepted
	}{
		{"one URI", withNames(t, name{tag: tagURI, text: web}), ""},
		{"DNS name beside it", withNames(t, name{tag: tagDNS, text: "web.default.svc"}, name{tag: tagURI, text: web}), ""},
		{"address and mail beside it", withNames(t, name{tag: tagURI, text: web}, name{tag: tagIP, text: "\x7f\x00\x00\x01"}, name{tag: tagEmail, text: "a@b"}), ""},
		{"as many names as allowed", withNames(t, many[:MaxNames]...), ""},
		{"one name too many", withNames(t, many...), "more than 100"},
		{"two URIs", withNames(t, name{tag: tagURI, text: web}, name{tag: tagURI, text: web}), "2 URI names"},
		{"two URIs, the second of another scheme", withNames(t, name{tag: tagURI, text: web}, name{tag: tagURI, text: "https://x/"}), "2 URI names"},
		{"no URI", withNames(t, name{tag: tagDNS, text: "web.default.svc"}), "no URI name"},
		{"ID in a DNS name", withNames(t, name{tag: tagDNS, text: web}), "no URI name"},
		{"no names", withNames(t), "no URI name"},
		{"no extension", &x509.Certificate{}, "no URI name"},
		{"URI that is no SPIFFE ID", withNames(t, name{tag: tagURI, text: "https://cluster.local/x"}), "does not begin"},
		{"empty URI", withNames(t, name{tag: tagURI, text: ""}), "empty"},
		{"compound URI", withNames(t, name{tag: tagURI, text: "", compound: true}), "malformed"},
		{"bytes behind the sequence", withSAN([]byte{0x30, 0, 0}), "malformed"},
		{"not a sequence", withSAN([]byte{0x04, 0}), "malformed"},
		{"cut short", withSAN([]byte{0x30, 5, 0x86, 9, 's'}), "malformed"},
		{"empty extension", withSAN(nil), "malformed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, err := FromCertificate(tc.cert)
			if tc.problem == "" {
				if err != nil || id.String() != web {
					t.Fatalf("FromCertificate = %q, %v, want %s", id, err, web)
				}
				return
			}
			var pe *ParseError
			if !errors.As(err, &pe) || !strings.Contains(pe.Problem, tc.problem) || !id.IsZero() {
				t.Fatalf("FromCertificate = %q, %v, want a *ParseError with %q", id, err, tc.problem)
			}
		})
	}
}

// Everything that Parse refuses is refused in a certificate too, from its raw bytes: url.Parse, which
// crypto/x509 uses, would let most of them in or change them.
func TestFromCertificateRefusesOddIDs(t *testing.T) {
	for label, tc := range odd {
		t.Run(label, func(t *testing.T) {
			if id, err := FromCertificate(withNames(t, name{tag: tagURI, text: tc.in})); err == nil || !id.IsZero() {
				t.Errorf("FromCertificate(URI %q) = %q, %v, want an error", clip(tc.in), id, err)
			}
		})
	}
}

func FuzzFromCertificate(f *testing.F) {
	der, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: tagDNS, Bytes: []byte("web")},
		{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(web)},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		id, err := FromCertificate(withSAN(der))
		if (err == nil) == id.IsZero() {
			t.Fatalf("FromCertificate(%x) = %q, %v", der, id, err)
		}
		if again, _ := Parse(id.String()); err == nil && again != id {
			t.Fatalf("FromCertificate(%x) = %q, which Parse refuses", der, id)
		}
	})
}
