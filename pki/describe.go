package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"culvert/pki/keyaddr"
	"culvert/pki/spiffe"
)

// maxShownName is how much of a name that somebody else chose is shown, in bytes.
const maxShownName = 200

// Description tells a person what one block of a PEM file is. Texts that come out of the block are quoted where they
// hold control characters, so they can be printed to a terminal.
type Description struct {
	Kind        string     // "certificate", "CA certificate", "private key", "CRL", or the PEM type of a block that is none of them
	Key         string     // kind of key, such as "ECDSA P-256"
	ID          spiffe.ID  // the SPIFFE ID, zero if there is none
	KeyID       spiffe.ID  // how lists of self-made keys and policy name its key, zero for kinds of keys that have no name
	Address     netip.Addr // the IPv6 address that follows from the key (keyaddr.V2), for keys that have a name
	Subject     string
	Issuer      string
	Serial      string // hexadecimal
	NotBefore   time.Time
	NotAfter    time.Time
	Names       []string // subject alternative names: "DNS:web", "IP:127.0.0.1", "URI:spiffe://…", "email:a@b"
	Usages      []string // "digitalSignature", "serverAuth", …
	Fingerprint string   // SHA-256 of the certificate, hexadecimal
	Revoked     []string // of a CRL: serial numbers, hexadecimal, each with the time of its revocation
	Problems    []string // why a gateway would refuse this as an identity (leaf) or as a root (CA) at present
}

// Describe describes each PEM block of data, in order. A private key is named by its kind only. The error is set when
// there is no block, or for blocks that cannot be read; the others are described all the same.
func Describe(data []byte) ([]Description, error) {
	var found []Description
	var errs []error
	n := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		n++
		switch {
		case block.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				errs = append(errs, fmt.Errorf("block %d: %w", n, err))
				continue
			}
			found = append(found, describeCertificate(c, time.Now()))
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			signer, err := parseKey(&input{field: "key", data: pem.EncodeToMemory(block)})
			if err != nil {
				errs = append(errs, fmt.Errorf("block %d: %w", n, err))
				continue
			}
			d := Description{Kind: "private key", Key: keyKind(signer.Public())}
			d.nameKey(signer.Public())
			found = append(found, d)
		case block.Type == "X509 CRL":
			list, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				errs = append(errs, fmt.Errorf("block %d: %w", n, err))
				continue
			}
			found = append(found, describeCRL(list, time.Now()))
		default:
			found = append(found, Description{Kind: printable(block.Type)})
		}
	}
	if n == 0 {
		errs = append(errs, errors.New("there is no PEM block (-----BEGIN …-----) in it"))
	}
	return found, errors.Join(errs...)
}

// String returns the description as lines of "name: value" for a terminal.
func (d Description) String() string {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name+":", value)
		}
	}
	line("kind", d.Kind)
	line("spiffe", d.ID.String())
	line("subject", d.Subject)
	line("issuer", d.Issuer)
	if !d.NotAfter.IsZero() {
		line("valid", stamp(d.NotBefore)+" to "+stamp(d.NotAfter))
	}
	line("key", d.Key)
	line("key name", d.KeyID.String())
	if d.Address.IsValid() {
		line("address", d.Address.String())
	}
	line("names", strings.Join(d.Names, " "))
	line("usage", strings.Join(d.Usages, " "))
	line("serial", d.Serial)
	line("sha256", d.Fingerprint)
	for _, revoked := range d.Revoked {
		line("revoked", revoked)
	}
	for _, problem := range d.Problems {
		line("problem", problem)
	}
	return b.String()
}

// describeCRL describes a revocation list (RFC 5280, section 5). Its signature is not verified: its CA is not at hand.
func describeCRL(list *x509.RevocationList, now time.Time) Description {
	d := Description{Kind: "CRL", Issuer: nameText(list.Issuer), NotBefore: list.ThisUpdate, NotAfter: list.NextUpdate}
	for i := range list.RevokedCertificateEntries {
		e := &list.RevokedCertificateEntries[i]
		d.Revoked = append(d.Revoked, fmt.Sprintf("%s at %s", e.SerialNumber.Text(16), stamp(e.RevocationTime)))
	}
	if !d.NotAfter.IsZero() && now.After(d.NotAfter) {
		d.Problems = append(d.Problems, "its next update is overdue since "+stamp(d.NotAfter))
	}
	return d
}

func describeCertificate(c *x509.Certificate, now time.Time) Description {
	sum := sha256.Sum256(c.Raw)
	d := Description{
		Kind: "certificate", Key: keyKind(c.PublicKey), Subject: nameText(c.Subject), Issuer: nameText(c.Issuer),
		Serial: c.SerialNumber.Text(16), NotBefore: c.NotBefore, NotAfter: c.NotAfter, Names: sanTexts(c), Usages: usageTexts(c),
		Fingerprint: hex.EncodeToString(sum[:]),
	}
	problem := func(detail string) {
		if detail != "" {
			d.Problems = append(d.Problems, detail)
		}
	}
	if c.IsCA {
		d.Kind = "CA certificate"
	} else if d.nameKey(c.PublicKey); isSelfMade([]*x509.Certificate{c}) {
		d.Kind = "certificate of a self-made key"
	} else {
		id, err := spiffe.FromCertificate(c)
		if d.ID = id; err != nil {
			problem(err.Error())
		}
		_, detail := leafProblem(c)
		problem(detail)
	}
	problem(keyProblem(c))
	_, detail := timeProblem(c, now)
	problem(detail)
	return d
}

// nameKey fills in what follows from a key.
func (d *Description) nameKey(pub crypto.PublicKey) {
	id, err := keyID(pub)
	if err != nil {
		return // RSA and other curves have no name
	}
	d.KeyID = id
	d.Address, _ = keyaddr.V2(pub) // it has a name, so it has an address
}

// keyKind names the kind and size of a public key.
func keyKind(pub crypto.PublicKey) string {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	default:
		return fmt.Sprintf("%T", pub)
	}
}

func sanTexts(c *x509.Certificate) []string {
	var names []string
	for _, name := range c.DNSNames {
		names = append(names, "DNS:"+printable(name))
	}
	for _, ip := range c.IPAddresses {
		names = append(names, "IP:"+ip.String())
	}
	for _, uri := range c.URIs {
		names = append(names, "URI:"+printable(uri.String()))
	}
	for _, mail := range c.EmailAddresses {
		names = append(names, "email:"+printable(mail))
	}
	return names
}

func usageTexts(c *x509.Certificate) []string {
	var usages []string
	for i, name := range []string{"digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment",
		"keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"} {
		if c.KeyUsage&(1<<i) != 0 {
			usages = append(usages, name)
		}
	}
	for _, usage := range c.ExtKeyUsage {
		usages = append(usages, usage.String())
	}
	for _, oid := range c.UnknownExtKeyUsage {
		usages = append(usages, oid.String())
	}
	return usages
}

// certName names a certificate for a message: its subject, or its SPIFFE ID, or its serial number.
func certName(c *x509.Certificate) string {
	if name := c.Subject.String(); name != "" {
		return nameText(c.Subject)
	}
	if id, err := spiffe.FromCertificate(c); err == nil {
		return id.String()
	}
	return "serial " + c.SerialNumber.Text(16)
}

// nameText writes a distinguished name that somebody else chose.
func nameText(name pkix.Name) string { return printable(name.String()) }

// printable returns text fit for a terminal and a log line: cut to maxShownName, and quoted if it holds anything
// that is not printable ASCII.
func printable(text string) string {
	if len(text) > maxShownName {
		text = text[:maxShownName] + "..."
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return strconv.QuoteToASCII(text)
		}
	}
	return text
}
