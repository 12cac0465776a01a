package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"culvert/pki/spiffe"
)

const (
	// maxTrustDomains bounds how many other trust domains are known. Each is a file or a URL to look after.
	maxTrustDomains = 100
	// maxTrustFiles bounds the lists of files of a TrustConfig.
	maxTrustFiles = 100
)

// TrustConfig says whose identities are believed besides those of the own trust domain, and which are not any more.
// Who of them may do something is left to policy: by default nobody of another trust domain.
type TrustConfig struct {
	// Domains are other trust domains, each with the CAs that sign its identities.
	Domains []DomainConfig `yaml:"domains"`
	// Aliases are other names of the own trust domain, such as that from before it was renamed: identities under them are
	// verified with the same roots, and policy takes them for the own.
	Aliases []string `yaml:"aliases"`
	// CRLs are files with certificate revocation lists (RFC 5280), PEM or DER. A list counts for the certificates of the
	// CA that has signed it. Flows of an identity that is revoked end.
	CRLs []string `yaml:"crls"`
	// StaleCRL says what a list is worth whose next update is overdue: `serve` goes on with it and warns, `refuse` refuses
	// the certificates of its CA. Default: serve.
	StaleCRL string `yaml:"staleCRL"`
	// Keys are files with self-made keys that are identities without a CA: lines of `key:NAME`, or of SSH's
	// authorized_keys, whose options from= and expiry-time= hold.
	Keys []string `yaml:"keys"`

	kept string // the list of the CA in the state folder, which may be missing; "": none
}

// DomainConfig is another trust domain.
type DomainConfig struct {
	// Name of the trust domain, such as `partner.example`.
	Name string `yaml:"name"`
	// Bundle is a file with its CAs, PEM or the SPIFFE bundle format (JSON), or an https URL of the latter, which is
	// fetched again as often as it says, and kept in the state folder for when it cannot be.
	Bundle string `yaml:"bundle"`
	// Roots is a PEM file with the CAs of the server of that URL (Web PKI profile of SPIFFE Federation, section 5.2.1).
	// Default: those of this host.
	Roots string `yaml:"roots"`
}

// Values of TrustConfig.StaleCRL.
const (
	staleServe  = "serve"
	staleRefuse = "refuse"
)

// IsZero reports whether c trusts nobody else and revokes nothing.
func (c *TrustConfig) IsZero() bool {
	return len(c.Domains)+len(c.Aliases)+len(c.CRLs)+len(c.Keys) == 0 && c.StaleCRL == "" && c.kept == ""
}

// Validate reports all problems that can be seen without reading a file, joined; each is a *ConfigError.
func (c *TrustConfig) Validate() error {
	var errs []error
	fault := func(field, mend, format string, args ...any) {
		errs = append(errs, &ConfigError{Field: "trust." + field, Reason: BadValue, Detail: fmt.Sprintf(format, args...), Mend: mend})
	}
	seen := make(map[string]bool)
	name := func(field, td string) {
		if err := spiffe.CheckTrustDomain(td); err != nil {
			fault(field, "write it like partner.example", "%v", err)
		} else if seen[td] {
			fault(field, "keep one of them", "%q stands there twice", td)
		}
		seen[td] = true
	}
	for i, d := range c.Domains {
		field := fmt.Sprintf("domains[%d]", i)
		name(field+".name", d.Name)
		switch {
		case d.Bundle == "":
			fault(field+".bundle", "name a file with the CAs of the trust domain, or an https URL", "is missing")
		case strings.Contains(d.Bundle, "://") && !isURL(d.Bundle):
			fault(field+".bundle", "use https://HOST/PATH, or a file", "%q is not a URL of https", d.Bundle)
		case d.Roots != "" && !isURL(d.Bundle):
			fault(field+".roots", "leave it out", "is for the server of a URL, and the bundle is a file")
		}
	}
	for i, alias := range c.Aliases {
		name(fmt.Sprintf("aliases[%d]", i), alias)
	}
	if !slices.Contains([]string{"", staleServe, staleRefuse}, c.StaleCRL) {
		fault("staleCRL", "use serve or refuse", "%q is neither", c.StaleCRL)
	}
	for _, list := range []struct {
		name  string
		n, of int
	}{{"domains", len(c.Domains), maxTrustDomains}, {"aliases", len(c.Aliases), maxTrustDomains}, {"crls", len(c.CRLs), maxTrustFiles}, {"keys", len(c.Keys), maxTrustFiles}} {
		if list.n > list.of {
			fault(list.name, "remove those that are not needed", "there are %d, and %d may be", list.n, list.of)
		}
	}
	return errors.Join(errs...)
}

// isURL reports whether a bundle is to be fetched.
func isURL(bundle string) bool { return strings.HasPrefix(bundle, "https://") }

// trust is what a TrustConfig came to at one moment. It is immutable.
type trust struct {
	hasKept bool                      // the list of the CA in the state folder is among revoked
	domains map[string]*x509.CertPool // of other trust domains
	aliases map[string]bool
	revoked *revocations
	keys    map[spiffe.ID][]pinnedKey

	warnings []string
	digest   [sha256.Size]byte
	turns    []time.Time // when somebody is not believed any more without a change of a file, in order
}

// paths are the files that c names; dir has the bundles that were fetched.
func (c *TrustConfig) paths(dir string) []string {
	var list []string
	for i := range c.Domains {
		list = append(list, c.Domains[i].file(dir))
	}
	if c.kept != "" {
		list = append(list, c.kept)
	}
	return slices.Concat(list, c.CRLs, c.Keys)
}

// loadTrust reads the files of c. Every problem is reported at once, joined, each a *ConfigError.
func loadTrust(c *TrustConfig, dir string, now time.Time) (*trust, error) {
	t := &trust{domains: make(map[string]*x509.CertPool), aliases: make(map[string]bool), revoked: newRevocations(c.StaleCRL == staleRefuse), keys: make(map[spiffe.ID][]pinnedKey)}
	var errs []error
	var texts [][]byte
	for _, alias := range c.Aliases {
		t.aliases[alias] = true
		texts = append(texts, []byte(alias))
	}
	read := func(field, file string, use func(in *input) error) {
		in := &input{field: "trust." + field, file: file}
		_, err := in.read()
		if err == nil {
			err = use(in)
		}
		errs = append(errs, err)
		texts = append(texts, []byte(field), in.data)
	}
	for i := range c.Domains {
		d := &c.Domains[i]
		file := d.file(dir)
		if isURL(d.Bundle) && !exists(file) {
			t.domains[d.Name] = x509.NewCertPool() // nobody of it is believed until the bundle has come
			t.warnings = append(t.warnings, "trust domain "+d.Name+": its bundle was not fetched yet")
			continue
		}
		read(fmt.Sprintf("domains[%d].bundle", i), file, func(in *input) error {
			pool, warnings, err := parseBundle(in, d.Name, now)
			t.domains[d.Name], t.warnings = pool, append(t.warnings, warnings...)
			return err
		})
	}
	for i, file := range c.CRLs {
		read(fmt.Sprintf("crls[%d]", i), file, t.revoked.add)
	}
	if c.kept != "" && exists(c.kept) {
		t.hasKept = true
		read("crls", c.kept, t.revoked.add)
	}
	for i, file := range c.Keys {
		read(fmt.Sprintf("keys[%d]", i), file, t.pin)
	}
	t.warnings = append(t.warnings, t.revoked.warnings(now)...)
	t.digest = digest(texts...)
	t.noteTurns()
	return t, errors.Join(errs...)
}

// noteTurns notes when entries of keys end, and when lists are overdue where that matters.
func (t *trust) noteTurns() {
	for _, list := range t.keys {
		for _, p := range list {
			if p.ssh != nil && !p.ssh.Expires.IsZero() {
				t.turns = append(t.turns, p.ssh.Expires)
			}
		}
	}
	if t.revoked.refuseStale {
		for _, lists := range t.revoked.byIssuer {
			for _, l := range lists {
				if !l.list.NextUpdate.IsZero() {
					t.turns = append(t.turns, l.list.NextUpdate)
				}
			}
		}
	}
	slices.SortFunc(t.turns, time.Time.Compare)
}

// turned reports whether time alone has changed whom t believes, after then and until now. Each moment itself still counts.
func (t *trust) turned(then, now time.Time) bool {
	if t == nil {
		return false
	}
	i, _ := slices.BinarySearchFunc(t.turns, then, func(turn, then time.Time) int {
		if turn.Before(then) {
			return -1
		}
		return 1
	})
	return i < len(t.turns) && now.After(t.turns[i])
}

// parseBundle reads the CAs of a trust domain: PEM, or the SPIFFE bundle format (SPIFFE Trust Domain and Bundle, section 4).
func parseBundle(in *input, td string, now time.Time) (*x509.CertPool, []string, error) {
	if text := bytes.TrimSpace(in.data); len(text) == 0 || text[0] != '{' {
		return parseRoots(in, now)
	}
	domain, err := spiffeid.TrustDomainFromString(td)
	if err != nil {
		return nil, nil, in.fail(BadValue, err, "write the name of the trust domain like partner.example", "is of no trust domain")
	}
	bundle, err := spiffebundle.Parse(domain, in.data)
	if err != nil {
		return nil, nil, in.fail(BadFormat, err, "it must be a SPIFFE bundle (JSON), or PEM", "is not a bundle")
	}
	authorities := bundle.X509Authorities()
	if len(authorities) == 0 {
		return nil, nil, in.fail(BadFormat, nil, "ask the trust domain for a bundle with x509-svid keys", "names no CA")
	}
	var text []byte
	for _, c := range authorities {
		text = append(text, encodeCert(c.Raw)...)
	}
	return parseRoots(&input{field: in.field, file: in.file, data: text}, now)
}

// isPEM reports whether a text holds a PEM block.
func isPEM(text []byte) bool {
	block, _ := pem.Decode(text)
	return block != nil
}

// believes returns the CAs for identities of a trust domain, nil if it is not known.
func (m *Material) believes(td string) *x509.CertPool {
	if td == m.ID.TrustDomain() {
		return m.Roots
	}
	switch {
	case m.trust == nil:
	case m.trust.aliases[td]:
		return m.Roots
	case m.trust.domains[td] != nil: // before what a federation says
		return m.trust.domains[td]
	}
	return m.federated[td]
}

// withTrust completes m, which nobody has seen yet.
func (m *Material) withTrust(t *trust) *Material {
	if t == nil {
		return m
	}
	m.trust = t
	m.warnings = append(m.warnings, t.warnings...)
	if own := m.ID.TrustDomain(); t.domains[own] != nil {
		m.warnings = append(m.warnings, "trust.domains names our own trust domain, "+own+", which changes nothing: its CAs are those of roots")
	}
	m.digest = digest(m.digest[:], t.digest[:])
	return m
}
