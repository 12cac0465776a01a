package pki

import (
	"crypto"
	"crypto/elliptic"
	"encoding/pem"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert/pki/spiffe"
)

// rsa512CSR was made by: openssl req -new -newkey rsa:512 -nodes -keyout /dev/null -subj /CN=x
const rsa512CSR = `-----BEGIN CERTIFICATE REQUEST-----
MIHFMHECAQAwDDEKMAgGA1UEAwwBeDBcMA0GCSqGSIb3DQEBAQUAA0sAMEgCQQDB
yrF03Wu6PWtkRxCcSEO+xtx67IpRgpE3C/2qLF9/x8yU9zD7Y3dBaeDgMdxQbyob
c7l2WTJy5hRNgLErf72FAgMBAAGgADANBgkqhkiG9w0BAQsFAANBADAYeIj++eW1
2Tg1X4jh/++0OfV6Jx/ulEygS+7bIkoYpJBahCKdhd5TWIbzRXGvaMByHgvVWDig
in4IvdPDfsY=
-----END CERTIFICATE REQUEST-----
`

func newRSAKey1024(t testing.TB) crypto.Signer { return newRSAKey(t, 1024) }

// rsa4104CSR was made like rsa512CSR, with rsa:4104.
const rsa4104CSR = `-----BEGIN CERTIFICATE REQUEST-----
MIIEUzCCAjoCAQAwDDEKMAgGA1UEAwwBeDCCAiMwDQYJKoZIhvcNAQEBBQADggIQ
ADCCAgsCggICAIKbJQbAHkFUKsBCKPaSRV+0EnrO9opoCD2KXyVF15u+kyMBCxgH
DnFJjgMn7x8E5gJurcPbJ6sN/1IvzCgLE4J8/cSXqsq0IjV1whcXoU5Kqi4DGaSt
jSgHIXYM1RECJ7zkd1C31xRpdZADuwPPHPFamD++sJxDcVdCl3ELpHqcZa+S4yCG
asWSSZaiHJ9LMWFjuL69ZDmBJAUOKTrdhQcUmY/N0otw3NDFSEtPOQv+MMgcxRlb
W4wjjB6ujDmUWZ8yy362QkXeHVDfakFfxWyQwIK52rm62TuBBQQm//8M/SiieczQ
gLqWyyD20mgiJwRPxP9bEvtrru1vOIn9HDEg3x6sIib3zhH1ci6n+P4H9WyRyVDv
VxDWeM07JYIQHSdRCPwYav9Ff9fIDoLCG9MIGILT43GVN9SE9gN+iB+pLde2lbqs
Ym152tgWl+Cqw8k5rWwsSyQz4qTXj7z61rfTcDvy3cJ4q6V6/6yeEDQk9ZqnMTLK
ncJp09p2vK+2usKVYqUcJuMYStpOUJW9RxLYI5hk/s9O8eaamYRhJGYzYQCP2Q9g
JBSDpqmYfppNt2PwcR4pCAih7sKQP5dn0PLYK1VMFkoqOPTNOvAc5u8dks5g1C/9
nJ1gGC82bEJe/h6/cfxgw+i8ctYQba858mEPoWL0wbHoj6uo9AfB7Yr7MwIDAQAB
oAAwDQYJKoZIhvcNAQELBQADggICADG+af9GTC14O05iP0b0gVIFWZPRz5PFjdWA
ZXPr/W8XLqrj1TEgTTwvmFFdcY9luAbIUyYxPlKOl9AQ5IxFUNfXqZvFCNKGcAN2
jEIvqA5ZGA65gxKVYC7srlTxZFqotIwpy/5PvErF2CIzoePwe4QgFemwGJ3d8AZd
pNBhBblywip8lQuAAH+DnHNkjxulKMzyP9QhUIkjqqiP+UkD0psSNfD0Yx1B9WU6
V+iNgIQj1B6RpblpCH8iCh+In941RGIkiYlHM2ZuFShzDEsHQy9+EIEi5wIey8vy
SfsR1H7dn/CjqnJJcFgaZlW/F/jGI3Jyq7KiHrL5IC/RFQVtWSi3/Cb7eA/ZsG9d
50V5fs1U9f8hitxFILQ/Z/YbCcx/lXH/P9bpXkPy1o3xIYCbG7tIlcbZoLYKR279
Zmqog1WBMGlGchadgcoTAFNUZMGJ/PS1Ox3y5/VL1HWGyOROufxsA165j/mfGlqj
dQOclysvslVC+0vJ15uRD0elW2AkPpF3WyfsvYcjia278DaAPWNs4/77HCThcSAU
C4fvmFba+dLMOdga2/0i+27Evd4yppjtsmcLjAb5gIfZ7PW5HxCz4xVpJ5iAAkmo
o7YZsLkAHqq14chOvXHpV2DvbnpiT9GW5k+A1xeG7pZnI7eKk3mF+El0R1U2HPjq
L9HvvRLglg==
-----END CERTIFICATE REQUEST-----
`

// FuzzCSR: whatever a CSR holds, what is signed is a leaf for what was granted.
func FuzzCSR(f *testing.F) {
	for _, tc := range hostileCSRs(f) {
		if len(tc.csr) < maxCSRBytes {
			f.Add(tc.csr)
		}
	}
	f.Add(csrOf(f, newECKey(f, elliptic.P256()), nil))
	ca := mustCA(f, testTD)
	f.Fuzz(func(t *testing.T, text string) {
		csr, err := parseCSR(text)
		if err != nil {
			return
		}
		grant := Grant{ID: webID(t)}
		if checkCSR(csr, grant) != nil {
			return
		}
		der, err := ca.certify(grant.ID, time.Hour, nil, csr.PublicKey, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := Describe(encodeCert(der)); err != nil || d[0].ID != grant.ID || len(d[0].Problems) > 0 {
			t.Errorf("a certificate %v, %v", d, err)
		}
	})
}

// FuzzBundle: a bundle that is read has roots and nothing but CAs, and can be written and read again.
func FuzzBundle(f *testing.F) {
	a := newAuthority(f, AuthorityConfig{})
	f.Add(a.Bundle())
	f.Add([]byte(`{"keys":[{"use":"x509-svid","kty":"EC","x5c":["AAAA"]}]}`))
	f.Add([]byte(`{"keys":[{"use":"x509-svid","kty":"EC"}],"spiffe_sequence":-1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		roots, err := decodeRoots(text)
		if err != nil {
			return
		}
		for _, root := range roots {
			if !root.IsCA {
				t.Errorf("%s is no CA", certName(root))
			}
		}
		again, err := encodeBundle(testTD, &authorityData{roots: roots})
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeRoots(again); err != nil || len(back) != len(roots) {
			t.Errorf("%d roots, and again %d, %v", len(roots), len(back), err)
		}
	})
}

// FuzzJWT: only tokens that this CA signed are good.
func FuzzJWT(f *testing.F) {
	a := newAuthority(f, AuthorityConfig{})
	good, err := a.IssueJWT(webID(f), []string{"db"})
	if err != nil {
		f.Fatal(err)
	}
	parts := strings.Split(good, ".")
	f.Add(good)
	f.Add(parts[0] + "." + parts[1] + ".")
	f.Add("eyJhbGciOiJub25lIn0." + parts[1] + ".")
	f.Add("eyJhbGciOiJIUzI1NiJ9." + parts[1] + "." + parts[2])
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if _, _, err := a.ValidateJWT(token, "db"); err == nil && token != good {
			t.Errorf("a token that this CA has not signed is good: %q", token)
		}
	})
}

func TestRecordOfIssued(t *testing.T) {
	id, other := webID(t), mustID(t, "spiffe://cluster.local/a")
	path := put(t, t.TempDir(), "issued.log", nil, 0o600)
	now := time.Unix(ledgerEpoch, 0)
	l, err := readLedger(path, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		who := id
		if i%2 == 1 {
			who = other
		}
		if err := l.add(who, issuedCert{serial: serialNumber{byte(i), 7}, signer: signerID{1, 2, 3, 4}, until: int32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	// A crash cuts the last line.
	text, err := readSmall(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Dir(path), "issued.log", append(text, "0123 9"...), 0o600)
	l, err = readLedger(path, now.Add(50*time.Second))
	if err != nil || l.live != 49 || len(l.byID[id]) != 24 || l.byID[id][0].serial != (serialNumber{52, 7}) || l.byID[id][0].signer != (signerID{1, 2, 3, 4}) {
		t.Fatalf("%d live, %d of %s, %v", l.live, len(l.byID[id]), id, err)
	}
	if end := l.end(); !end.Equal(now.Add(99 * time.Second)) {
		t.Errorf("the last ends at %v", end)
	}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	// Most of it expires: the file is written anew.
	for i := range ledgerSlack + 200 {
		if err := l.add(mustIDOf(i/1000), issuedCert{serial: serialNumber{9}, until: 60}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.sweep(now.Add(90 * time.Second)); err != nil || l.live != 9 || l.lines != 9 {
		t.Errorf("%d live in %d lines, %v, want 9", l.live, l.lines, err)
	}
	if again, err := readLedger(path, now); err != nil || again.live != 9 {
		t.Errorf("the file has %d, %v, want 9", again.live, err)
	}
}

func TestRecordIsBounded(t *testing.T) {
	l, err := readLedger(put(t, t.TempDir(), "issued.log", nil, 0o600), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for range maxLivePerID {
		if err := l.add(webID(t), issuedCert{until: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.add(webID(t), issuedCert{until: 1}); err == nil || !strings.Contains(err.Error(), "live certificates") {
		t.Errorf("one more of an identity: %v", err)
	}
	l.live = maxLive
	if err := l.add(mustIDOf(1), issuedCert{until: 1}); err == nil || !strings.Contains(err.Error(), "record of live certificates is full") {
		t.Errorf("one more of all: %v", err)
	}
}

// A block of another type after the CSR is not passed over.
func TestCSRIsOneBlock(t *testing.T) {
	key := newECKey(t, elliptic.P256())
	block, _ := pem.Decode([]byte(csrOf(t, key, nil)))
	for kind, good := range map[string]bool{"CERTIFICATE REQUEST": true, "NEW CERTIFICATE REQUEST": true, "CERTIFICATE": false, "PUBLIC KEY": false} {
		if _, err := parseCSR(string(pemBlock(kind, block.Bytes))); good != (err == nil) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// mustIDOf makes the nth of many identities.
func mustIDOf(n int) spiffe.ID {
	id, err := spiffe.New(testTD, "many", "w"+strconv.Itoa(n))
	if err != nil {
		panic(err)
	}
	return id
}
