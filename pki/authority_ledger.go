package pki

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
)

const (
	// maxLive bounds the certificates that are recorded and not expired: 24 bytes each, and a week's worth of a
	// big mesh in an hour.
	maxLive = 1 << 20
	// maxLivePerID keeps one member from taking the room of all, and what one revocation adds to a CRL below its
	// bound.
	maxLivePerID = 16384
	// ledgerSlack is how many lines of the record may be of expired certificates before it is written anew.
	ledgerSlack = 16384
	// maxLedgerLine is the longest line: serial, time, signer and an identity.
	maxLedgerLine = 128 + spiffe.MaxLen
)

// serialNumber is the number of a certificate that an Authority issued: 128 random bits.
type serialNumber [16]byte

func (s serialNumber) String() string { return hex.EncodeToString(s[:]) }

func (s serialNumber) int() *big.Int { return new(big.Int).SetBytes(s[:]) }

// MarshalText returns the serial number in hexadecimal.
func (s serialNumber) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *serialNumber) UnmarshalText(text []byte) error {
	read, ok := parseSerial(string(text))
	if !ok {
		return fmt.Errorf("%q is no serial number", text)
	}
	*s = read
	return nil
}

// parseSerial reads a serial number as String or `gateway cert show` writes it.
func parseSerial(text string) (s serialNumber, ok bool) {
	if len(text) == 0 || len(text) > 2*len(s) {
		return s, false
	}
	raw, err := hex.DecodeString(strings.Repeat("0", 2*len(s)-len(text)) + strings.ToLower(text))
	if err != nil {
		return s, false
	}
	copy(s[:], raw)
	return s, true
}

// serialNumberOf returns the serial number of a certificate, zero for one that is too long to be ours.
func serialNumberOf(n *big.Int) (s serialNumber) {
	if n != nil && n.Sign() > 0 && n.BitLen() <= 8*len(s) {
		n.FillBytes(s[:])
	}
	return s
}

// signerID names a signing key: the first bytes of the SHA-256 of its public key.
type signerID [4]byte

func (s signerID) String() string { return hex.EncodeToString(s[:]) }

// MarshalText returns the name in hexadecimal.
func (s signerID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *signerID) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(s) {
		return fmt.Errorf("%q is no name of a key", text)
	}
	copy(s[:], raw)
	return nil
}

// issuedCert is a certificate that was issued.
type issuedCert struct {
	serial serialNumber
	signer signerID
	until  int32 // seconds after ledgerEpoch
}

// ledgerEpoch makes times of this century fit 32 bits.
const ledgerEpoch = 1_700_000_000

func (c *issuedCert) notAfter() time.Time { return time.Unix(ledgerEpoch+int64(c.until), 0) }

// ledger is the record of issued certificates: in memory, and in a file that one process at a time appends to.
type ledger struct {
	mu    sync.Mutex
	path  string                     // immutable
	file  *os.File                   // guarded by mu; nil: this process only reads
	byID  map[spiffe.ID][]issuedCert // guarded by mu
	live  int                        // guarded by mu: certificates in byID
	lines int                        // guarded by mu: lines of the file
	dirty bool                       // guarded by mu: something may not be on disk
}

// readLedger reads the record; a file that is not there is an empty one. A last line without an end was cut by a
// crash and is passed over.
func readLedger(path string, now time.Time) (*ledger, error) {
	l := &ledger{path: path, byID: make(map[spiffe.ID][]issuedCert)}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	scan := bufio.NewReaderSize(f, maxLedgerLine)
	for {
		line, err := scan.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: line %d: %w", path, l.lines+1, err)
		}
		l.lines++
		id, cert, ok := parseLedgerLine(string(line[:len(line)-1]))
		if ok && now.Before(cert.notAfter()) && l.live < maxLive {
			l.byID[id] = append(l.byID[id], cert)
			l.live++
		}
	}
}

func parseLedgerLine(line string) (id spiffe.ID, cert issuedCert, ok bool) {
	var serial, signer, name string
	if n, err := fmt.Sscanf(line, "%32s %d %8s %s", &serial, &cert.until, &signer, &name); n != 4 || err != nil {
		return id, cert, false
	}
	cert.serial, ok = parseSerial(serial)
	if !ok || cert.signer.UnmarshalText([]byte(signer)) != nil {
		return id, cert, false
	}
	id, err := spiffe.Parse(name)
	return id, cert, err == nil
}

func ledgerLine(id spiffe.ID, cert issuedCert) string {
	return fmt.Sprintf("%s %d %s %s\n", cert.serial, cert.until, cert.signer, id)
}

// open makes the ledger one that is written. The caller has made sure that no other process does.
func (l *ledger) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rewrite()
}

// add records a certificate before it is signed. The error is an *istioca.Error if there are too many already.
func (l *ledger) add(id spiffe.ID, cert issuedCert) error {
	line := ledgerLine(id, cert)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.file == nil:
		return errClosed
	case l.live >= maxLive:
		return &istioca.Error{Code: istioca.ResourceExhausted, Detail: "the CA's record of live certificates is full; ask again when some have expired"}
	case len(l.byID[id]) >= maxLivePerID:
		return &istioca.Error{Code: istioca.ResourceExhausted,
			Detail: fmt.Sprintf("%s has %d live certificates; ask again when some have expired", id, maxLivePerID)}
	}
	if _, err := l.file.WriteString(line); err != nil {
		return err
	}
	l.byID[id] = append(l.byID[id], cert)
	l.live++
	l.lines++
	l.dirty = true
	return nil
}

// sync brings what was added to the disk.
func (l *ledger) sync() error {
	l.mu.Lock()
	f, dirty := l.file, l.dirty
	l.dirty = false
	l.mu.Unlock()
	if f == nil || !dirty {
		return nil
	}
	if err := f.Sync(); err != nil && !errors.Is(err, fs.ErrClosed) { // closed: written anew meanwhile, and synced
		return err
	}
	return nil
}

// sweep forgets what has expired, and writes the file anew when most of it has.
func (l *ledger) sweep(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, certs := range l.byID {
		kept := certs[:0]
		for _, c := range certs {
			if now.Before(c.notAfter()) {
				kept = append(kept, c)
			}
		}
		l.live -= len(certs) - len(kept)
		if len(kept) == 0 {
			delete(l.byID, id)
		} else {
			l.byID[id] = kept
		}
	}
	if l.file == nil || l.lines <= 2*l.live+ledgerSlack {
		return nil
	}
	return l.rewrite()
}

// rewrite puts a file with what is live in the place of the old one. The caller holds mu.
func (l *ledger) rewrite() error {
	f, err := os.CreateTemp(filepath.Dir(l.path), ".issued.*")
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for id, certs := range l.byID {
		for _, c := range certs {
			_, _ = w.WriteString(ledgerLine(id, c)) // Flush has the error
		}
	}
	err = errors.Join(w.Flush(), f.Sync())
	if err == nil {
		err = os.Rename(f.Name(), l.path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if l.file != nil {
		_ = l.file.Close() // its successor is in place
	}
	l.file, l.lines, l.dirty = f, l.live, false
	return syncDir(filepath.Dir(l.path))
}

// close ends writing.
func (l *ledger) close() error {
	err := l.sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return err
	}
	err = errors.Join(err, l.file.Close())
	l.file = nil
	return err
}

// end returns when the last live certificate expires, zero if there is none.
func (l *ledger) end() (last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, certs := range l.byID {
		for _, c := range certs {
			if until := c.notAfter(); until.After(last) {
				last = until
			}
		}
	}
	return last
}
