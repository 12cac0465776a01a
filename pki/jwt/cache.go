package jwt

import (
	"container/list"
	"crypto/sha256"
	"sync"
)

const (
	// subjectShare is the part of an issuer's entries that one subject may have.
	subjectShare = 8
	// meanEntryBytes times the number of entries is what the cache may hold altogether.
	meanEntryBytes = 4 << 10
	// entryBytes is what an entry needs besides its claims: the Token, two list elements and a place in a map.
	entryBytes = 800
	// claimFactor is what a byte of a payload becomes when it is decoded into maps and texts.
	claimFactor = 5
)

// digest is the SHA-256 of a token.
type digest = [sha256.Size]byte

// cache keeps verified tokens until they end. Only tokens that were verified come in. Each issuer has a share of its
// own, so the tokens of one never push out those of another; and in it a subject (of a self-made key: the key) pushes out its
// own oldest token when it has an eighth of the share.
type cache struct {
	mu      sync.Mutex
	entries map[digest]*entry // guarded by mu
}

// share is the part of the cache that one issuer has.
type share struct {
	maxEntries, maxBytes, perSubject int // immutable

	order    list.List             // guarded by cache.mu: of *entry, the last used first
	bytes    int                   // guarded by cache.mu
	subjects map[string]*list.List // guarded by cache.mu: of *entry, the youngest first
}

// entry is one verified token.
type entry struct {
	sum     digest
	token   *Token
	subject string
	bytes   int
	// places in share.order and in the list of the subject
	used, made *list.Element
}

func newCache() *cache { return &cache{entries: make(map[digest]*entry)} }

// newShare makes the share of one of n issuers.
func newShare(entries, n int) *share {
	each := min(entries, max(1, entries/n))
	return &share{maxEntries: each, maxBytes: each * meanEntryBytes, perSubject: max(1, each/subjectShare), subjects: make(map[string]*list.List)}
}

// get returns the token with this digest, nil for none.
func (c *cache) get(sum *digest) *Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[*sum]
	if e == nil {
		return nil
	}
	e.token.by.share.order.MoveToFront(e.used)
	return e.token
}

// put keeps a token, whose payload had size bytes.
func (c *cache) put(sum digest, t *Token, size int) {
	s := t.by.share
	e := &entry{sum: sum, token: t, subject: t.Subject, bytes: entryBytes + claimFactor*size}
	if t.Key != "" {
		e.subject = t.Key
	}
	if s.maxEntries == 0 || e.bytes > s.maxBytes {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[sum]; old != nil {
		c.remove(old)
	}
	own := s.subjects[e.subject]
	if own == nil {
		own = list.New()
		s.subjects[e.subject] = own
	}
	c.entries[sum] = e
	e.used, e.made = s.order.PushFront(e), own.PushFront(e)
	s.bytes += e.bytes
	if own.Len() > s.perSubject {
		c.remove(own.Back().Value.(*entry))
	}
	for s.order.Len() > s.maxEntries || s.bytes > s.maxBytes {
		c.remove(s.order.Back().Value.(*entry))
	}
}

// drop forgets a token that is nothing any more.
func (c *cache) drop(sum *digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[*sum]; e != nil {
		c.remove(e)
	}
}

// remove takes an entry out. The caller holds mu.
func (c *cache) remove(e *entry) {
	s := e.token.by.share
	delete(c.entries, e.sum)
	s.order.Remove(e.used)
	s.bytes -= e.bytes
	own := s.subjects[e.subject]
	if own.Remove(e.made); own.Len() == 0 {
		delete(s.subjects, e.subject)
	}
}

// size returns how many tokens are kept, and about how many bytes they need.
func (c *cache) size(issuers []*issuer) (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, by := range issuers {
		bytes += by.share.bytes
	}
	return len(c.entries), bytes
}
