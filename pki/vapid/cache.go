package vapid

import (
	"container/list"
	"crypto/sha256"
	"slices"
	"sync"
)

const (
	// newShare is the part of the cache for tokens that were shown once: a quarter.
	newShare = 4
	// keyEntries is how many tokens of one key are kept in each part. A sender has one for each push service.
	keyEntries = 4
)

// digest is the SHA-256 of key and token.
type digest = [sha256.Size]byte

// cache keeps verified tokens. Anybody can make keys and sign with them, so an entry costs a stranger little. What was
// shown once therefore only has a quarter of the places, and moves to the others when it is shown again: a flood of tokens
// that are used once pushes out its own kind, and not the tokens of senders that send. One key has few places in either.
type cache struct {
	mu      sync.Mutex
	entries map[digest]*entry // guarded by mu
	once    part              // guarded by mu: shown once
	often   part              // guarded by mu: shown again
}

// part is one of the two parts of a cache.
type part struct {
	size  int
	order list.List                   // of *entry, the last used first
	keys  map[[KeyBytes]byte][]*entry // those of each key, keyEntries at most, the oldest first
}

// entry is one verified token.
type entry struct {
	sum    digest
	sender *Sender
	in     *part
	at     *list.Element // in in.order
}

// newCache makes a cache of size entries, none for 0.
func newCache(size int) *cache {
	c := &cache{entries: make(map[digest]*entry)}
	c.once = part{size: size / newShare, keys: make(map[[KeyBytes]byte][]*entry)}
	c.often = part{size: size - size/newShare, keys: make(map[[KeyBytes]byte][]*entry)}
	return c
}

// get returns the sender of a token that is kept, and nil for others.
func (c *cache) get(sum *digest) *Sender {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[*sum]
	switch {
	case e == nil:
		return nil
	case e.in == &c.once:
		c.remove(e)
		c.add(e, &c.often)
	default:
		e.in.order.MoveToFront(e.at)
	}
	return e.sender
}

// put keeps a token.
func (c *cache) put(sum digest, s *Sender) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.once.size > 0 && c.entries[sum] == nil {
		c.add(&entry{sum: sum, sender: s}, &c.once)
	}
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// add puts an entry first in a part and takes out what has no place any more. The caller holds mu.
func (c *cache) add(e *entry, to *part) {
	key := e.sender.Key
	if own := to.keys[key]; len(own) >= keyEntries {
		c.remove(own[0])
	}
	e.in, e.at = to, to.order.PushFront(e)
	to.keys[key] = append(to.keys[key], e)
	c.entries[e.sum] = e
	if to.order.Len() > to.size {
		c.remove(to.order.Back().Value.(*entry))
	}
}

// remove takes an entry out. The caller holds mu.
func (c *cache) remove(e *entry) {
	delete(c.entries, e.sum)
	e.in.order.Remove(e.at)
	key := e.sender.Key
	own := slices.DeleteFunc(e.in.keys[key], func(other *entry) bool { return other == e })
	if e.in.keys[key] = own; len(own) == 0 {
		delete(e.in.keys, key)
	}
}
