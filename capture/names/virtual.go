package names

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// virtualTTL is how long an app may keep a virtual address, in seconds.
	virtualTTL = 60
	// virtualAge is how long an address stays a name's at least after it was last given out: apps keep addresses for
	// longer than they should.
	virtualAge = 24 * time.Hour
	// virtualTries is how many places an address is looked for at.
	virtualTries = 64
)

// virtual gives addresses to names. One name has the same address for as long as possible, also after a restart: it
// follows from the name.
type virtual struct {
	prefix netip.Prefix // not valid: there are none

	mu    sync.Mutex
	names map[netip.Addr]*given // guarded by mu
	addrs map[string]netip.Addr // guarded by mu
}

// given is an address that a name has.
type given struct {
	name string
	at   time.Time // when it was last given out
}

func newVirtual(prefix netip.Prefix) *virtual {
	return &virtual{prefix: prefix, names: make(map[netip.Addr]*given), addrs: make(map[string]netip.Addr)}
}

// of returns the address of a name; not valid where there is none left.
func (v *virtual) of(name string) netip.Addr {
	if !v.prefix.IsValid() {
		return netip.Addr{}
	}
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if addr, ok := v.addrs[name]; ok {
		v.names[addr].at = now
		return addr
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // it does not fail
	for i := range uint64(virtualTries) {
		addr := v.at(h.Sum64() + i)
		old := v.names[addr]
		if !addr.IsValid() || old != nil && now.Sub(old.at) < virtualAge {
			continue
		}
		if old != nil {
			delete(v.addrs, old.name)
		}
		v.names[addr], v.addrs[name] = &given{name, now}, addr
		return addr
	}
	return netip.Addr{}
}

// at returns the n-th address of the range, which is not its first or last one.
func (v *virtual) at(n uint64) netip.Addr {
	hostBits := v.prefix.Addr().BitLen() - v.prefix.Bits()
	size := uint64(1) << min(hostBits, 32)
	if n %= size; n == 0 || n == size-1 {
		return netip.Addr{}
	}
	b := v.prefix.Addr().AsSlice()
	if len(b) == 4 {
		binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)|uint32(n))
	} else {
		low := b[8:]
		binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)|n)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// name returns whose address it is, without the final dot. inside tells that it is one of the range, if nobody's.
func (v *virtual) name(addr netip.Addr) (name string, inside bool) {
	if !v.prefix.IsValid() || !v.prefix.Contains(addr) {
		return "", false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if g := v.names[addr]; g != nil {
		name = strings.TrimSuffix(g.name, ".")
	}
	return name, true
}

// sortZones puts the longest name first.
func sortZones(zones []zone) {
	slices.SortStableFunc(zones, func(a, b zone) int { return cmp.Compare(strings.Count(b.name, "."), strings.Count(a.name, ".")) })
}
