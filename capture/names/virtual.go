package names

import (
	"container/list"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// virtualTTL is how long an app may keep a virtual address, in seconds.
	virtualTTL = 60
	// virtualAge is how long an address stays a name's at least after it was last given out or used: apps keep addresses
	// for longer than they should, and a flow must never end at another name than it was meant for.
	virtualAge = 24 * time.Hour
	// virtualTries is how many places an address is looked for at.
	virtualTries = 256
	// maxVirtual is how many names have an address of a family at a time. Below *.mesh an app can ask for any number of
	// names; these take some 30 MB.
	maxVirtual = 1 << 16
)

// virtual gives addresses to names. One name has the same address for as long as possible, also after a restart: it
// follows from the name.
type virtual struct {
	prefix netip.Prefix // not valid: there are none

	mu    sync.Mutex
	names map[netip.Addr]*list.Element // of *given; guarded by mu
	addrs map[string]*list.Element     // of *given; guarded by mu
	order list.List                    // of *given, the last used first; guarded by mu
}

// given is an address that a name has.
type given struct {
	name string
	addr netip.Addr
	at   time.Time // when it was last given out, or a flow came to it
}

func newVirtual(prefix netip.Prefix) *virtual {
	return &virtual{prefix: prefix, names: make(map[netip.Addr]*list.Element), addrs: make(map[string]*list.Element)}
}

// of returns the address of a name; not valid where there are none in this family. ok tells that none is wanting: false
// where all are those of other names.
func (v *virtual) of(name string) (addr netip.Addr, ok bool) {
	if !v.prefix.IsValid() {
		return netip.Addr{}, true
	}
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.addrs[name]; e != nil {
		v.use(e, now)
		return e.Value.(*given).addr, true
	}
	if len(v.addrs) >= maxVirtual && !v.forget(v.order.Back(), now) {
		return netip.Addr{}, false
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // it does not fail
	for i := range uint64(virtualTries) {
		addr := v.at(h.Sum64() + i)
		if !addr.IsValid() {
			continue
		}
		if old := v.names[addr]; old != nil && !v.forget(old, now) {
			continue
		}
		e := v.order.PushFront(&given{name, addr, now})
		v.names[addr], v.addrs[name] = e, e
		return addr, true
	}
	return netip.Addr{}, false
}

// use notes that an app has the address. v.mu is held.
func (v *virtual) use(e *list.Element, now time.Time) {
	e.Value.(*given).at = now
	v.order.MoveToFront(e)
}

// forget takes an address from its name, if that has not used it for long. v.mu is held.
func (v *virtual) forget(e *list.Element, now time.Time) bool {
	g := e.Value.(*given)
	if now.Sub(g.at) < virtualAge {
		return false
	}
	v.order.Remove(e)
	delete(v.names, g.addr)
	delete(v.addrs, g.name)
	return true
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
	if e := v.names[addr]; e != nil {
		v.use(e, time.Now())
		name = strings.TrimSuffix(e.Value.(*given).name, ".")
	}
	return name, true
}
