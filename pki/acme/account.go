package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	xacme "golang.org/x/crypto/acme"
)

// minMACBytes is what an HMAC key has at least; CAs give out 32 or 64.
const minMACBytes = 16

// account is who we are to the CA. Each directory has one of its own: an answer to a challenge names the account's key
// (RFC 8555, section 8.1), so no CA can use ours for an order of somebody else at another.
type account struct {
	key   *ecdsa.PrivateKey // nil as long as the file was not read
	url   string            // "" as long as the CA does not know the key
	email string            // as the CA knows it
}

// LogValue keeps the key out of logs.
func (a *account) LogValue() slog.Value { return slog.StringValue(a.url) }

// accountFile is account.json.
type accountFile struct {
	Key   string `json:"key"` // PEM, PKCS #8
	URL   string `json:"url"`
	Email string `json:"email,omitempty"`
}

// signIn gives c our account at the CA and makes one if need be. One order at a time does so; others wait.
func (m *Manager) signIn(ctx context.Context, c *xacme.Client) error {
	var a *account
	select {
	case a = <-m.account:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { m.account <- a }()
	if a.key == nil {
		if err := m.loadAccount(a); err != nil {
			return err
		}
	}
	c.Key = a.key
	if a.url == "" {
		if err := m.register(ctx, c, a); err != nil {
			return err
		}
	}
	c.KID = xacme.KeyID(a.url)
	if m.cfg.Email != "" && m.cfg.Email != a.email {
		m.updateEmail(ctx, c, a)
	}
	return nil
}

// forgetAccount makes the next signIn ask the CA anew for the account of our key. The CA did not know url.
func (m *Manager) forgetAccount(ctx context.Context, url string) error {
	select {
	case a := <-m.account:
		if a.url == url {
			a.url = ""
		}
		m.account <- a
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// loadAccount reads the account's file, or makes a key and keeps it before the CA hears of it.
func (m *Manager) loadAccount(a *account) error {
	path := m.store.accountPath()
	data, info, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		made := account{key: key}
		if err := m.saveAccount(&made); err != nil {
			return err
		}
		*a = made
		return nil
	}
	if err != nil {
		return err
	}
	if isOpen(info) {
		m.log.Warn("others can read the key of the ACME account", "file", path, "mode", info.Mode().Perm().String())
	}
	read, err := decodeAccount(data)
	if err != nil {
		return fmt.Errorf("%s: %w; put it back, or remove it to have a new account made", path, err)
	}
	*a = *read
	return nil
}

// decodeAccount reads account.json.
func decodeAccount(data []byte) (*account, error) {
	var file accountFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, errors.New("is not the JSON that it should be")
	}
	block, _ := pem.Decode([]byte(file.Key))
	if block == nil {
		return nil, errors.New("has no key in PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("has a key that is not an ECDSA P-256 key")
	}
	if len(file.URL) > maxURLBytes {
		return nil, errors.New("has a URL that is too long")
	}
	return &account{key: key, url: file.URL, email: file.Email}, nil
}

// saveAccount writes the account's file.
func (m *Manager) saveAccount(a *account) error {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	data, err := json.MarshalIndent(accountFile{Key: string(key), URL: a.url, Email: a.email}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(m.store.accountPath(), append(data, '\n'))
}

// register makes the account, or finds the one that the CA has for the key (RFC 8555, section 7.3.1).
func (m *Manager) register(ctx context.Context, c *xacme.Client, a *account) error {
	dir, err := c.Discover(ctx)
	if err != nil {
		return err
	}
	wanted := &xacme.Account{}
	if m.cfg.Email != "" {
		wanted.Contact = []string{"mailto:" + m.cfg.Email}
	}
	if m.mac != nil {
		wanted.ExternalAccountBinding = &xacme.ExternalAccountBinding{KID: m.cfg.ExternalAccount.KID, Key: m.mac}
	} else if dir.ExternalAccountRequired {
		return errors.New("the CA wants an external account; set externalAccount to the kid and key that it gave out")
	}
	_, err = c.Register(ctx, wanted, func(string) bool { return m.cfg.AgreeTOS })
	if err != nil && !errors.Is(err, xacme.ErrAccountAlreadyExists) {
		return err
	}
	if c.KID == "" || len(c.KID) > maxURLBytes {
		return errors.New("the CA named no URL for the account")
	}
	made := err == nil
	a.url, a.email = string(c.KID), ""
	if made {
		a.email = m.cfg.Email
		m.log.Info("ACME account made", "account", a, "terms", clean(dir.Terms, maxDetailBytes))
	}
	return m.saveAccount(a)
}

// updateEmail tells the CA an address that has changed. Certificates do not depend on it: a failure is logged, and the
// next start tries again.
func (m *Manager) updateEmail(ctx context.Context, c *xacme.Client, a *account) {
	_, err := c.UpdateReg(ctx, &xacme.Account{Contact: []string{"mailto:" + m.cfg.Email}})
	a.email = m.cfg.Email
	if err == nil {
		err = m.saveAccount(a)
	}
	if err != nil && ctx.Err() == nil {
		m.log.Warn("the CA does not know the new e-mail address", "account", a, "err", clean(err.Error(), maxDetailBytes))
	}
}

// readMAC reads the HMAC key of an external account.
func readMAC(path string, log *slog.Logger) ([]byte, error) {
	bad := func(err error, mend, detail string) error {
		return &ConfigError{Field: "externalAccount.keyFile", File: path, Detail: detail, Mend: mend, Err: err}
	}
	data, info, err := readFile(path)
	if err != nil {
		return nil, bad(err, "check the path, and who may read it", "cannot be read")
	}
	if isOpen(info) {
		mode := fmt.Sprintf("others than its owner can use it (mode %04o)", info.Mode().Perm())
		excuse := openKeyExcuse(path, info)
		if excuse == "" {
			return nil, bad(nil, "run: chmod 600 "+path, mode)
		}
		log.Warn("key of the external account is usable with a flaw", "file", path, "reason", mode+"; tolerated, because "+excuse)
	}
	text := strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(strings.TrimSpace(string(data)), "="))
	mac, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(mac) < minMACBytes {
		return nil, bad(nil, "copy what the CA gave out", fmt.Sprintf("is not base64url of %d bytes and more", minMACBytes))
	}
	return mac, nil
}
