package names

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// lookEvery is how often files of the system are looked at for changes, as Go's own resolver does.
	lookEvery = 5 * time.Second
	// maxSystemFile is how much of one is read.
	maxSystemFile = 4 << 20
)

// systemFile is a file that others change. Its fields are guarded by the mutex of who embeds it.
type systemFile struct {
	looked time.Time
	size   int64
	made   time.Time
}

// changed returns the text of the file at path if it was not read yet in this form; of one that cannot be read nil.
func (f *systemFile) changed(path string) (text []byte, changed bool) {
	now := time.Now()
	if !f.looked.IsZero() && now.Sub(f.looked) < lookEvery {
		return nil, false
	}
	first := f.looked.IsZero()
	f.looked = now
	size, made := int64(-1), time.Time{}
	if info, err := os.Stat(path); err == nil {
		size, made = info.Size(), info.ModTime()
	}
	if !first && size == f.size && made.Equal(f.made) {
		return nil, false
	}
	f.size, f.made = size, made
	file, err := os.Open(path)
	if err != nil {
		return nil, true
	}
	defer file.Close()
	text, err = io.ReadAll(io.LimitReader(file, maxSystemFile))
	if err != nil {
		return nil, true
	}
	return text, true
}

// hostsFile is hosts(5).
type hostsFile struct {
	path string

	mu   sync.Mutex // guards the group below
	file systemFile
	of   map[string][]netip.Addr
}

// addrs returns the addresses that the file has for name, which is in lower case without a final dot.
func (h *hostsFile) addrs(name string) []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if text, changed := h.file.changed(h.path); changed {
		h.of = parseHosts(text)
	}
	return h.of[name]
}

func parseHosts(text []byte) map[string][]netip.Addr {
	of := make(map[string][]netip.Addr)
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || addr.Zone() != "" {
			continue
		}
		for _, name := range fields[1:] {
			name = strings.TrimSuffix(strings.ToLower(name), ".")
			if len(of[name]) < maxAddresses {
				of[name] = append(of[name], addr.Unmap())
			}
		}
	}
	return of
}

// resolvConf is resolv.conf(5).
type resolvConf struct {
	path string

	mu   sync.Mutex // guards the group below
	file systemFile
	conf *dns.ClientConfig // not changed, but replaced; nil: there is none
}

// read returns what the file says now, nil where there is none, and whether that is new.
func (c *resolvConf) read() (conf *dns.ClientConfig, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, changed := c.file.changed(c.path)
	if changed {
		c.conf = nil
		if parsed, err := dns.ClientConfigFromReader(bytes.NewReader(text)); err == nil && text != nil {
			c.conf = parsed
		}
	}
	return c.conf, changed
}
