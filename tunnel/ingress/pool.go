package ingress

import (
	"bufio"
	"io"
	"sync"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/h2"
)

const (
	// maxIdle is how many carriers without a request are kept for a destination, and maxIdleAll for all of them.
	maxIdle    = 128
	maxIdleAll = 4096
	// idleFor is how long a carrier is kept: less than servers commonly wait.
	idleFor = 50 * time.Second
	// pruneEvery is how often those are looked for that were kept long enough.
	pruneEvery = 5 * time.Second
)

// pool keeps carriers for requests to come. It may be used concurrently.
type pool struct {
	mu     sync.Mutex // guards all below
	groups map[tunnel.CarrierKey]*group
	idle   int // carriers of HTTP/1.1 without a request
	closed bool
	timer  *time.Timer // nil: nothing is kept
}

// group is the carriers that can serve the same requests.
type group struct {
	idle   []*carrier1 // the last one used is the last
	shared []*carrier2 // of HTTP/2, with requests or without
}

// carrier1 is a carrier on which requests of HTTP/1.1 follow each other.
type carrier1 struct {
	*tunnel.Carrier
	key   tunnel.CarrierKey
	r     *bufio.Reader
	w     *bufio.Writer
	bound *boundReader // below r
	since time.Time    // without a request
	used  bool
}

// carrier2 is a carrier on which requests of HTTP/2 run beside each other.
type carrier2 struct {
	*tunnel.Carrier
	conn *h2.Conn
}

// newCarrier1 makes ready to speak HTTP/1.1 on c.
func newCarrier1(c *tunnel.Carrier, key tunnel.CarrierKey) *carrier1 {
	one := &carrier1{Carrier: c, key: key, bound: &boundReader{r: c, left: -1}}
	one.r, one.w = bufio.NewReaderSize(one.bound, 4<<10), bufio.NewWriterSize(c, 4<<10)
	return one
}

func newPool() *pool { return &pool{groups: make(map[tunnel.CarrierKey]*group)} }

// take returns a carrier that was kept for key, nil if there is none that lives.
func (p *pool) take(key tunnel.CarrierKey) *carrier1 {
	for {
		p.mu.Lock()
		g := p.groups[key]
		if g == nil || len(g.idle) == 0 {
			p.mu.Unlock()
			return nil
		}
		c := g.idle[len(g.idle)-1]
		g.idle[len(g.idle)-1] = nil
		g.idle = g.idle[:len(g.idle)-1]
		p.idle--
		p.mu.Unlock()
		if time.Since(c.since) < idleFor && c.Quiet() {
			return c
		}
		_ = c.Close() // the destination has closed it, or has said something that nobody has asked for
	}
}

// keep keeps a carrier that was used to the end of an answer.
func (p *pool) keep(c *carrier1) {
	c.since, c.used = time.Now(), true
	p.mu.Lock()
	g := p.group(c.key)
	if p.closed || len(g.idle) >= maxIdle || p.idle >= maxIdleAll {
		p.mu.Unlock()
		_ = c.Close() // there are others
		return
	}
	g.idle = append(g.idle, c)
	p.idle++
	p.look()
	p.mu.Unlock()
}

// group returns the group of key. Called with mu held.
func (p *pool) group(key tunnel.CarrierKey) *group {
	g := p.groups[key]
	if g == nil {
		g = new(group)
		p.groups[key] = g
	}
	return g
}

// look has prune run later. Called with mu held.
func (p *pool) look() {
	if p.timer == nil && !p.closed {
		p.timer = time.AfterFunc(pruneEvery, p.prune)
	}
}

// shared returns a carrier of HTTP/2 that has room for a request and that ok does not refuse.
func (p *pool) shared(key tunnel.CarrierKey, ok func(*tunnel.Carrier) bool) *carrier2 {
	p.mu.Lock()
	var list []*carrier2
	if g := p.groups[key]; g != nil {
		list = append(list, g.shared...)
	}
	p.mu.Unlock()
	for _, c := range list {
		if c.conn.Slots() > 0 && ok(c.Carrier) {
			return c
		}
	}
	return nil
}

// share keeps a carrier of HTTP/2 until it ends.
func (p *pool) share(key tunnel.CarrierKey, c *carrier2) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		g := p.group(key)
		g.shared = append(g.shared, c)
		p.look()
	}
}

// prune ends what was kept long enough.
func (p *pool) prune() {
	p.mu.Lock()
	p.timer = nil
	over := p.cut(time.Now().Add(-idleFor))
	if len(p.groups) > 0 {
		p.look()
	}
	p.mu.Unlock()
	for _, c := range over {
		_ = c.Close() // nobody uses it
	}
}

// cut takes out what is without a request since a time, and what has ended. Called with mu held.
func (p *pool) cut(since time.Time) (over []io.Closer) {
	for key, g := range p.groups {
		n := 0
		for n < len(g.idle) && g.idle[n].since.Before(since) {
			over = append(over, g.idle[n])
			n++
		}
		g.idle = append([]*carrier1(nil), g.idle[n:]...)
		p.idle -= n
		var live []*carrier2
		for _, c := range g.shared {
			select {
			case <-c.conn.Done():
				over = append(over, c)
			default:
				live = append(live, c)
			}
		}
		if g.shared = live; len(g.idle)+len(live) == 0 {
			delete(p.groups, key)
		}
	}
	return over
}

// close ends what has no request, and keeps nothing any more.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	var shared []*carrier2
	for _, g := range p.groups {
		shared = append(shared, g.shared...)
		g.shared = nil
	}
	over := p.cut(time.Now().Add(time.Hour))
	p.mu.Unlock()
	for _, c := range over {
		_ = c.Close() // as in prune
	}
	for _, c := range shared {
		go c.end() // ends with the requests on it, which the flows that they are of bound
	}
}

// end lets the requests end and closes.
func (c *carrier2) end() {
	<-drained(c.conn)
	_ = c.Close()
}

// Close closes the connection.
func (c *carrier2) Close() error {
	_ = c.conn.Close() // which closes what is below
	return c.Carrier.Close()
}

// boundReader bounds how much is read while left is not negative.
type boundReader struct {
	r    io.Reader
	left int
}

// Read reads, within the bound.
func (b *boundReader) Read(p []byte) (int, error) {
	if b.left < 0 {
		return b.r.Read(p)
	}
	if b.left == 0 {
		return 0, errAnswerTooLong
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// errAnswerTooLong is why an answer is not taken.
var errAnswerTooLong = &tunnel.Error{Cause: tunnel.CauseHopProtocol, Reason: "the head of the destination's answer is too long"}
