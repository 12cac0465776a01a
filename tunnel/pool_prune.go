package tunnel

import "time"

// prune ends connections that were made for more flows than there are now.
func (p *pool) prune(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, g := range p.groups {
		if g.prune(now) {
			delete(p.groups, key)
		}
	}
}

// prune reports whether the group has been without a connection for so long that the pool need not keep it.
func (g *group) prune(now time.Time) (drop bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	keep := max(g.chain.last.spread, 1)
	if e := g.chain.last.endpoint; g.chain.last.perTarget || e != nil && e.Gone() {
		keep = 0 // peers choose how many of these there are; and what is gone gets no more flows
	}
	for i := len(g.conns) - 1; i >= 0 && len(g.conns) > keep; i-- {
		t := g.conns[i]
		if t.inUse > 0 {
			t.idleAt = time.Time{}
		} else if t.idleAt.IsZero() {
			t.idleAt = now
		} else if now.Sub(t.idleAt) >= surplusIdle {
			g.remove(t)
			g.pool.loops.Add(1)
			go g.retire(t) // ends at once, as no stream is open, or with the pool; close waits for it
		}
	}
	if len(g.live)+len(g.conns) > 0 || g.dialing != nil || now.Sub(g.taken) < groupIdle || now.Before(g.retryAt.Add(groupIdle)) {
		return false
	}
	g.dropped = true
	return true
}

// retire ends a transport that gets no new streams when the last of them has ended.
func (g *group) retire(t *pooled) {
	defer g.pool.loops.Done()
	_ = t.Drain(g.pool.base) // it is over for new streams; those that live may
}
