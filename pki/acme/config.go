package acme

import (
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// LetsEncrypt is the directory that is used if none is named.
const LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// The ways to show control of a name that Config.Challenges may list.
const (
	TLSALPN01 = "tls-alpn-01" // RFC 8737: a handshake on port 443
	HTTP01    = "http-01"     // RFC 8555, section 8.3: a request on port 80
)

const (
	// defaultOrdersPerHour is what Let's Encrypt forgives: five failed validations an hour for a name.
	defaultOrdersPerHour = 5
	// maxOrdersPerHour is far above what any CA lets through, and bounds orders.json.
	maxOrdersPerHour = 100
	// maxNames bounds goroutines, files and the time that a renewal of all takes: Let's Encrypt takes 300 orders in
	// three hours of an account.
	maxNames = 1000
	// maxNameBytes and maxLabelBytes are those of DNS (RFC 1035, section 2.3.4), as text without the last dot.
	maxNameBytes  = 253
	maxLabelBytes = 63
	// maxURLBytes is more than any directory needs.
	maxURLBytes = 2048
	// maxWordBytes bounds the short texts that we hand to the CA: an address (RFC 5321, section 4.5.3.1.3), a key ID, a
	// profile.
	maxWordBytes = 254
)

// Config says which names to get certificates for, and from whom. Keys of certificates and of the account are always
// ECDSA P-256.
type Config struct {
	// Directory is the URL of the CA's ACME directory, https only. Default Let's Encrypt; for first tries use its
	// staging CA, https://acme-staging-v02.api.letsencrypt.org/directory.
	Directory string `yaml:"directory"`
	// Names are the DNS names to get certificates for, one certificate each, 1000 at most. No wildcards; names with
	// other than ASCII letters in their xn-- form.
	Names []string `yaml:"names"`
	// Email is where the CA writes to when something is wrong with the account or its certificates. Default none.
	Email string `yaml:"email"`
	// AgreeTOS says that you agree to the CA's terms of service. Must be true; the log names where they are.
	AgreeTOS bool `yaml:"agreeTOS"`
	// Challenges are the ways to show control of a name, the preferred one first: tls-alpn-01, for which the CA must
	// reach port 443 of the name here, and http-01, for which it must reach port 80. After a failure the other is
	// tried. Default both in this order.
	Challenges []string `yaml:"challenges"`
	// Profile is the kind of certificate to ask for, as the CA's directory calls it, such as shortlived. Default the
	// CA's choice.
	Profile string `yaml:"profile"`
	// ExternalAccount binds the account to one that you have with the CA already, where the CA asks for it.
	ExternalAccount ExternalAccountConfig `yaml:"externalAccount"`
	// Roots is a PEM file with the CA certificates that the CA's own server is verified with. Default those of the
	// system.
	Roots string `yaml:"roots"`
	// RenewBefore is how long before its end a certificate is renewed, at most half of its life. Default a third of its
	// life. Up to a fiftieth of the life is added at random, so that names do not come all at once.
	RenewBefore time.Duration `yaml:"renewBefore"`
	// OrdersPerHour is how many orders are made for a name within an hour, at most 100. Default 5.
	OrdersPerHour int `yaml:"ordersPerHour"`
}

// ExternalAccountConfig is what a CA gives out to bind ACME accounts to its own (RFC 8555, section 7.3.4). KID and
// KeyFile are set together.
type ExternalAccountConfig struct {
	// KID is the key ID that the CA gave out.
	KID string `yaml:"kid"`
	// KeyFile is a file with the HMAC key that the CA gave out, in base64url, 16 bytes at least. Group and others must
	// have no access to it. On a tmpfs, on a read-only mount, or owned by root while the gateway is not root, that
	// is only a warning.
	KeyFile string `yaml:"keyFile"`
}

// Validate reports all problems that can be seen without reading a file, joined; each is a *ConfigError.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, mend, detail string, args ...any) {
		errs = append(errs, &ConfigError{Field: field, Detail: fmt.Sprintf(detail, args...), Mend: mend})
	}
	if detail := checkDirectory(c.directory()); detail != "" {
		bad("directory", "name the CA's ACME directory, such as "+LetsEncrypt, "%s", detail)
	}
	errs = append(errs, c.validateNames()...)
	if detail := checkEmail(c.Email); detail != "" {
		bad("email", "write it as ops@example.com, or leave it out", "%.100q %s", c.Email, detail)
	}
	if !c.AgreeTOS {
		bad("agreeTOS", "read the CA's terms of service, then set it to true", "is not true")
	}
	for i, typ := range c.Challenges {
		switch {
		case typ != TLSALPN01 && typ != HTTP01:
			bad("challenges", "use "+TLSALPN01+" and "+HTTP01, "%.100q is none that this gateway can answer", typ)
		case slices.Contains(c.Challenges[:i], typ):
			bad("challenges", "name it once", "%s is there twice", typ)
		}
	}
	if c.Profile != "" && !isWord(c.Profile) {
		bad("profile", "use a word of the CA's directory, meta.profiles", "%.100q is not one word", c.Profile)
	}
	if (c.ExternalAccount.KID == "") != (c.ExternalAccount.KeyFile == "") {
		bad("externalAccount", "kid and keyFile go together: set both, or leave both out", "has one of kid and keyFile only")
	}
	if kid := c.ExternalAccount.KID; kid != "" && !isWord(kid) {
		bad("externalAccount.kid", "copy what the CA gave out", "%.100q is not one word", kid)
	}
	if c.RenewBefore < 0 {
		bad("renewBefore", "use the time before the end, such as 720h, or leave it out", "%v is after the certificate's end", c.RenewBefore)
	}
	if c.OrdersPerHour < 0 || c.OrdersPerHour > maxOrdersPerHour {
		bad("ordersPerHour", fmt.Sprintf("use 1 to %d, or leave it out", maxOrdersPerHour), "%d is out of range", c.OrdersPerHour)
	}
	return errors.Join(errs...)
}

// validateNames checks the list of names, each and for names that are there twice.
func (c *Config) validateNames() (errs []error) {
	bad := func(mend, detail string, args ...any) {
		errs = append(errs, &ConfigError{Field: "names", Detail: fmt.Sprintf(detail, args...), Mend: mend})
	}
	switch {
	case len(c.Names) == 0:
		bad("list the DNS names that this gateway shall have certificates for", "is empty")
	case len(c.Names) > maxNames:
		bad(fmt.Sprintf("at most %d", maxNames), "%d are too many", len(c.Names))
		return errs
	}
	seen := make(map[string]bool)
	for _, name := range c.Names {
		lower := lowerASCII(name)
		switch detail, mend := checkName(lower); {
		case detail != "":
			bad(mend, "%.100q %s", name, detail)
		case seen[lower]:
			bad("name it once", "%q is there twice", lower)
		}
		seen[lower] = true
	}
	return errs
}

// directory returns the URL to use.
func (c *Config) directory() string {
	if c.Directory == "" {
		return LetsEncrypt
	}
	return c.Directory
}

// challenges returns the ways to show control of a name, the preferred one first.
func (c *Config) challenges() []string {
	if len(c.Challenges) == 0 {
		return []string{TLSALPN01, HTTP01}
	}
	return c.Challenges
}

// ordersPerHour returns the bound to use.
func (c *Config) ordersPerHour() int {
	if c.OrdersPerHour == 0 {
		return defaultOrdersPerHour
	}
	return c.OrdersPerHour
}

// checkDirectory returns what is wrong with the URL of a directory, "" if nothing is. RFC 8555, section 6.1: "All
// interactions between the client and server MUST use HTTPS".
func checkDirectory(s string) string {
	u, err := url.Parse(s)
	switch {
	case len(s) > maxURLBytes:
		return fmt.Sprintf("is longer than %d bytes", maxURLBytes)
	case err != nil:
		return fmt.Sprintf("%.100q is not a URL", s)
	case u.Scheme != "https" || u.Hostname() == "":
		return fmt.Sprintf("%.100q is not an https URL", s)
	case u.User != nil || u.Fragment != "":
		return fmt.Sprintf("%.100q has a user or a fragment", u.Redacted())
	}
	return ""
}

// checkEmail returns what is wrong with an e-mail address, "" if nothing is. RFC 8555, section 7.3: a mailto URL must
// not contain header fields, nor more than one address.
func checkEmail(s string) string {
	if s == "" {
		return ""
	}
	addr, err := mail.ParseAddress(s)
	if err != nil || addr.Address != s || len(s) > maxWordBytes || strings.ContainsAny(s, "?,%&#<>\" ") {
		return "is not one plain e-mail address"
	}
	return ""
}

// checkName returns what is wrong with a DNS name in lower case and what would be right, "" if nothing is: labels of
// letters, digits and "-" (RFC 1123, section 2.1), the last of which is not a number, or it would be read as an
// address.
func checkName(name string) (detail, mend string) {
	const plain = "write it as www.example.com"
	switch {
	case name == "":
		return "is empty", plain
	case len(name) > maxNameBytes:
		return fmt.Sprintf("is longer than %d bytes", maxNameBytes), plain
	case strings.HasPrefix(name, "*."):
		return "is a wildcard, which needs DNS-01", "list the names themselves"
	case isAddress(name):
		return "is an IP address", "use a DNS name"
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "has an empty label", plain
		case len(label) > maxLabelBytes:
			return fmt.Sprintf("has a label of more than %d bytes", maxLabelBytes), plain
		case label[0] == '-' || label[len(label)-1] == '-':
			return "has a label that begins or ends with -", plain
		}
		for i := range len(label) {
			if b := label[i]; b >= 0x80 {
				return "has other than ASCII letters", "use its xn-- form"
			} else if b != '-' && !isDigit(b) && (b < 'a' || b > 'z') {
				return fmt.Sprintf("has a %q, and only letters, digits and - may be in a name", b), plain
			}
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return "ends with a number", plain
	}
	return "", ""
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func isAddress(s string) bool {
	_, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil
}

// isWord reports whether s is short, printable ASCII without spaces.
func isWord(s string) bool {
	return s != "" && len(s) <= maxWordBytes && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0
}

// lowerASCII returns s with A to Z in lower case and nothing else changed; strings.ToLower would make letters of
// other scripts into ASCII ones.
func lowerASCII(s string) string {
	for i := range len(s) {
		if s[i] < 'A' || s[i] > 'Z' {
			continue
		}
		b := []byte(s)
		for ; i < len(b); i++ {
			if b[i] >= 'A' && b[i] <= 'Z' {
				b[i] += 'a' - 'A'
			}
		}
		return string(b)
	}
	return s
}
