package acme

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
)

const (
	// maxFileBytes is more than a file of ours or of an operator has: orders.json of 1000 names with 100 orders each
	// has 1.4 MB.
	maxFileBytes = 4 << 20
	// maxReadableName is the longest name that is part of a file's name; with what is around it stays below the 255
	// bytes that file systems take. Longer ones go by their hash.
	maxReadableName = 180
	// newFiles are those that are being written.
	newFiles = ".new-*"
	// folderHashBytes tells folders of directories at one host apart.
	folderHashBytes = 6
)

// store is the folder of one directory's account and certificates.
type store struct{ dir string }

// openStore makes the folder for a directory below dir and refuses one that others can write to.
func openStore(dir, directory string) (store, error) {
	if dir == "" {
		return store{}, &ConfigError{Field: "state", Detail: "the folder for certificates has no name", Mend: "name a folder"}
	}
	u, err := url.Parse(directory)
	if err != nil {
		return store{}, err
	}
	hash := sha256.Sum256([]byte(directory))
	host := lowerASCII(u.Hostname())
	if detail, _ := checkName(host); detail != "" || len(host) > maxReadableName {
		host = "ca" // an address, or too long: the hash alone tells
	}
	s := store{filepath.Join(dir, host+"-"+hex.EncodeToString(hash[:folderHashBytes]))}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return store{}, &ConfigError{Field: "state", File: s.dir, Detail: "cannot be made", Err: err,
			Mend: "name a folder that the gateway may write to"}
	}
	for _, path := range []string{dir, s.dir} {
		info, err := os.Stat(path)
		if err != nil {
			return store{}, &ConfigError{Field: "state", File: path, Detail: "cannot be looked at", Err: err,
				Mend: "name a folder that the gateway may write to"}
		}
		if mode := info.Mode().Perm(); mode&0o022 != 0 && runtime.GOOS != "windows" {
			return store{}, &ConfigError{Field: "state", File: path, Mend: "run: chmod go-w " + path,
				Detail: fmt.Sprintf("others than its owner can write to it (mode %04o)", mode)}
		}
	}
	return s, nil
}

func (s store) accountPath() string { return filepath.Join(s.dir, "account.json") }
func (s store) ordersPath() string  { return filepath.Join(s.dir, "orders.json") }
func (s store) lockPath() string    { return filepath.Join(s.dir, "lock") }

// certPath returns the file of a name, which checkName has let pass and so has no separators.
func (s store) certPath(name string) string {
	if len(name) > maxReadableName {
		hash := sha256.Sum256([]byte(name))
		name = hex.EncodeToString(hash[:])
	}
	return filepath.Join(s.dir, "cert-"+name+".pem")
}

// sweep removes what a process left behind that ended while it wrote. The caller holds the lock.
func (s store) sweep() error {
	left, err := filepath.Glob(filepath.Join(s.dir, newFiles))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// keptFile is a certificate that was read from its file.
type keptFile struct {
	cert *tls.Certificate
	info fs.FileInfo // the file as it was read
	open bool        // others than the owner could read the key
}

// readCert reads the certificate of a name. The error is fs.ErrNotExist if there is none.
func (s store) readCert(name string) (*keptFile, error) {
	path := s.certPath(name)
	data, info, err := readFile(path)
	if err != nil {
		return nil, err
	}
	cert, err := decodePair(data, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &keptFile{cert: cert, info: info, open: isOpen(info)}, nil
}

// isOpen reports whether others than its owner can use a file. Windows has no such bits.
func isOpen(info fs.FileInfo) bool {
	return info.Mode().Perm()&0o066 != 0 && runtime.GOOS != "windows"
}

// readFile reads a regular file of a bounded size.
func readFile(path string) ([]byte, fs.FileInfo, error) {
	info, err := os.Stat(path) // before Open, which would wait for the other end of a FIFO
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: is not a regular file (%s)", path, info.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxFileBytes {
		return nil, nil, fmt.Errorf("%s: is bigger than %d bytes", path, maxFileBytes)
	}
	return data, info, nil
}

// writeFile puts data in a file of mode 0600 by way of a new file beside it, which is on disk before it takes the name,
// so that a crash or a full disk leaves the old file whole.
func writeFile(path string, data []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, newFiles) // mode 0600, and never a file or link that exists
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync() // some file systems cannot do this for a folder
	return d.Close()
}
