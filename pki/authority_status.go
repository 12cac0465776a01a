package pki

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

// AuthorityStatus is what a person wants to know of an Authority.
type AuthorityStatus struct {
	ID       spiffe.ID // of the CA as a server
	Pin      string
	Address  string        // where it was last served
	Roots    []Description // those that members trust
	Signer   Description   // what signs: the intermediate, or the root
	RootHere bool          // the root's key is in the folder
	Phase    Phase         // of a rotation
	Ready    time.Time     // when the rotation may go on, zero if there is none
	Live     int           // certificates that were issued and have not expired
	Members  int           // identities that they name
	Tokens   int           // that wait to be used
	Revoked  int           // certificates in the CRL
	Barred   []spiffe.ID   // identities that were revoked
}

// AuthorityMember is an identity with certificates that have not expired.
type AuthorityMember struct {
	ID           spiffe.ID
	Certificates int
	NotAfter     time.Time // of the one that ends last
}

// Members returns whom the CA has given certificates that are live, in the order of their identities.
func (a *Authority) Members() ([]AuthorityMember, error) {
	issued, err := a.issued(time.Now())
	if err != nil {
		return nil, err
	}
	members := make([]AuthorityMember, 0, len(issued.byID))
	for id, certs := range issued.byID {
		m := AuthorityMember{ID: id, Certificates: len(certs)}
		for _, c := range certs {
			if until := c.notAfter(); until.After(m.NotAfter) {
				m.NotAfter = until
			}
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(x, y AuthorityMember) int { return strings.Compare(x.ID.String(), y.ID.String()) })
	return members, nil
}

// Status reads the state of the CA.
func (a *Authority) Status() (AuthorityStatus, error) {
	now := time.Now()
	issued, err := a.issued(now)
	if err != nil {
		return AuthorityStatus{}, err
	}
	d := a.data.Load()
	s := AuthorityStatus{ID: a.id, Pin: a.Pin(), Address: d.state.Address, Signer: describeCertificate(d.signer().cert, now), RootHere: d.root != nil,
		Live: issued.live, Members: len(issued.byID), Revoked: len(d.state.Revoked), Barred: d.state.Barred}
	for _, root := range d.roots {
		s.Roots = append(s.Roots, describeCertificate(root, now))
	}
	for _, t := range d.state.Tokens {
		if t.UsedBy == "" && now.Before(t.Until) {
			s.Tokens++
		}
	}
	if r := d.state.Rotation; r != nil {
		s.Phase, s.Ready = r.Phase, r.Ready
	}
	return s, nil
}

// String returns the status as lines of "name: value" for a terminal.
func (s AuthorityStatus) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	line("ca", "%s", s.ID)
	line("pin", "%s", s.Pin)
	if s.Address != "" {
		line("address", "%s", s.Address)
	}
	for _, root := range s.Roots {
		line("root", "%s, until %s", root.Subject, stamp(root.NotAfter))
	}
	line("signs", "%s, until %s", s.Signer.Subject, stamp(s.Signer.NotAfter))
	if !s.RootHere {
		line("root key", "kept elsewhere")
	}
	if s.Phase != PhaseNone {
		line("rotation", "%s; it may go on at %s", s.Phase, stamp(s.Ready))
	}
	line("issued", "%d live certificates of %d identities", s.Live, s.Members)
	line("tokens", "%d wait", s.Tokens)
	line("revoked", "%d certificates", s.Revoked)
	for _, id := range s.Barred {
		line("barred", "%s", id)
	}
	return b.String()
}
