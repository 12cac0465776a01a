package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"

	"culvert/pki/spiffe"
	"culvert/pki/workloadapi"
)

// Workloads returns what signs for a Workload API, with this CA.
func (a *Authority) Workloads() workloadapi.Issuer { return workloads{a} }

// workloads is workloadapi.Issuer.
type workloads struct{ a *Authority }

// IssueX509 makes a key and signs a certificate for it, for the CA's default time.
func (w workloads) IssueX509(_ context.Context, name string) (*workloadapi.X509SVID, error) {
	id, err := spiffe.Parse(name)
	if err != nil {
		return nil, err
	}
	grant := Grant{ID: id}
	if err := w.a.checkGrant(grant); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	d := w.a.data.Load()
	der, err := w.a.sign(d, key.Public(), grant, 0)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if d.inter != nil {
		der = slices.Concat(der, d.inter.cert.Raw)
	}
	return &workloadapi.X509SVID{ID: name, Chain: der, Key: keyDER, Renew: halfLife(cert.NotBefore, cert.NotAfter), NotAfter: cert.NotAfter,
		Revoked: func() bool { return w.a.data.Load().revoked[serialNumberOf(cert.SerialNumber)] }}, nil
}

// IssueJWTSVID signs a JWT-SVID.
func (w workloads) IssueJWTSVID(_ context.Context, name string, audiences []string) (string, error) {
	id, err := spiffe.Parse(name)
	if err != nil {
		return "", err
	}
	return w.a.IssueJWT(id, audiences)
}

// ValidateJWTSVID checks a JWT-SVID of this CA.
func (w workloads) ValidateJWTSVID(_ context.Context, token, audience string) (string, []byte, error) {
	id, claims, err := w.a.ValidateJWT(token, audience)
	return id.String(), claims, err
}

// Bundle returns the roots, the CRLs and the keys of JWT-SVIDs.
func (w workloads) Bundle() (workloadapi.Bundle, <-chan struct{}) {
	changed := w.a.nextChange() // before the look, so that no change is missed
	d := w.a.data.Load()
	b := workloadapi.Bundle{TrustDomain: "spiffe://" + w.a.trustDomain}
	for _, root := range d.roots {
		b.Roots = append(b.Roots, root.Raw...)
	}
	for block, rest := pem.Decode(d.crl); block != nil; block, rest = pem.Decode(rest) {
		b.CRLs = append(b.CRLs, block.Bytes)
	}
	keys, err := jwtKeys(d)
	if err == nil {
		b.JWKS, err = json.Marshal(jwkSet{Keys: keys})
	}
	if err != nil {
		w.a.log.Error("keys of tokens cannot be written", "err", err) // they were, for the bundle
	}
	return b, changed
}
